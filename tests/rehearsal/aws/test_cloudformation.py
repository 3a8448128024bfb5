"""Where moto is made to behave as CloudFormation does."""

import json
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from moto.cloudformation import parsing
from moto.cloudformation.models import Stack
from moto.sagemaker.models import FakeEndpoint

from rehearsal.aws.cloudformation import behave_as_cloudformation


@pytest.fixture
def _as_cloudformation(aws: None) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for place, name in (
            (Stack, "outputs"),
            (parsing, "generate_resource_name"),
            (FakeEndpoint, "cloudformation_name_type"),
        ):
            patch.setattr(place, name, vars(place)[name])  # put back later
        behave_as_cloudformation()
        yield


def outputs_of(stack: str) -> list[Any]:
    (described,) = boto3.client("cloudformation").describe_stacks(StackName=stack)["Stacks"]
    return [output["OutputKey"] for output in described.get("Outputs", [])]


@pytest.mark.usefixtures("_as_cloudformation")
def test_outputs_come_in_any_order() -> None:
    names = [f"Output{number}" for number in range(20)]
    topic = {"Any": {"Type": "AWS::SNS::Topic"}}
    template = {"Resources": topic, "Outputs": {name: {"Value": name} for name in names}}
    boto3.client("cloudformation").create_stack(StackName="s", TemplateBody=json.dumps(template))
    assert sorted(outputs_of("s")) == sorted(names)
    assert any(outputs_of("s") != outputs_of("s") for _ in range(10))


@pytest.mark.usefixtures("_as_cloudformation")
def test_an_endpoint_has_its_name_and_its_configuration_one_that_is_short_enough() -> None:
    variant = {"InitialVariantWeight": 1, "ModelName": "m", "VariantName": "v"}
    variant |= {"InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
    resources = {
        "AConfigurationWithAName" * 2: {
            "Type": "AWS::SageMaker::EndpointConfig",
            "Properties": {"ProductionVariants": [variant]},
        },
        "Endpoint": {
            "Type": "AWS::SageMaker::Endpoint",
            "Properties": {
                "EndpointName": "bins",
                "EndpointConfigName": {
                    "Fn::GetAtt": ["AConfigurationWithAName" * 2, "EndpointConfigName"]
                },
            },
        },
    }
    sagemaker = boto3.client("sagemaker")
    sagemaker.create_model(ModelName="m", ExecutionRoleArn="arn:aws:iam::123456789012:role/r")
    boto3.client("cloudformation").create_stack(
        StackName="a-stack-of-some-length", TemplateBody=json.dumps({"Resources": resources})
    )
    (configuration,) = sagemaker.list_endpoint_configs()["EndpointConfigs"]
    assert len(configuration["EndpointConfigName"]) <= 63
    (endpoint,) = sagemaker.list_endpoints()["Endpoints"]
    assert endpoint["EndpointName"] == "bins"
