"""Where CloudFormation behaves differently from moto, as far as it matters to our stacks."""

import random
from typing import Any

from moto.cloudformation import parsing
from moto.cloudformation.models import Stack
from moto.sagemaker.models import FakeEndpoint

SAGEMAKER_NAME = 63  # characters


def behave_as_cloudformation() -> None:
    """From now on, moto returns outputs in any order and names resources as AWS does."""
    in_order: Any = Stack.outputs
    make_up = parsing.generate_resource_name

    def in_any_order(stack: Stack) -> list[Any]:
        outputs = in_order.fget(stack) or []
        return random.sample(outputs, len(outputs))

    def short_enough(resource_type: str, stack_name: str, logical_id: str) -> str:
        name = make_up(resource_type, stack_name, logical_id)
        of_sagemaker = resource_type.startswith("AWS::SageMaker::")
        return name[-SAGEMAKER_NAME:].lstrip("-") if of_sagemaker else name

    Stack.outputs = property(in_any_order)  # type: ignore[assignment]
    parsing.generate_resource_name = short_enough
    FakeEndpoint.cloudformation_name_type = staticmethod(lambda: "EndpointName")  # type: ignore[method-assign]
