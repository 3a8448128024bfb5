"""AWS's PyTorch image for training on SageMaker, from the tables in SageMaker's SDK."""

import json
from importlib.metadata import distribution
from pathlib import Path

FRAMEWORK, VERSION = "pytorch-amzn2023", "2.14"  # the newest in the SDK
REPOSITORY = "pytorch"


def training_image(instance_type: str, region: str) -> str:
    """URI of the image for training on such a machine, found without a request to AWS.

    Raises ValueError if there is none.
    """
    from sagemaker.core import image_uris  # takes 5 seconds, which the stacks do not need

    uri: str = image_uris.retrieve(
        FRAMEWORK, region, version=VERSION, instance_type=instance_type, image_scope="training"
    )
    return uri


def image_accounts() -> dict[str, str]:
    """The AWS account that has the image, by region."""
    table = distribution("sagemaker-core").locate_file(
        f"sagemaker/core/image_uri_config/{FRAMEWORK}.json"
    )
    versions = json.loads(Path(str(table)).read_text())["training"]["versions"]
    return dict(versions[VERSION]["registries"])
