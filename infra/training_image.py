"""AWS's PyTorch image that training on SageMaker runs in, by the SDK's own tables."""

import json
from importlib.metadata import distribution
from pathlib import Path

FRAMEWORK, VERSION = "pytorch-amzn2023", "2.14"  # the newest that the SDK knows
REPOSITORY = "pytorch"


def training_image(instance_type: str, region: str) -> str:
    """URI of the image for training on such a machine; nobody is asked.

    Raises ValueError where there is none.
    """
    from sagemaker.core import image_uris  # 5 seconds, which image_accounts and the stacks save

    uri: str = image_uris.retrieve(
        FRAMEWORK, region, version=VERSION, instance_type=instance_type, image_scope="training"
    )
    return uri


def image_accounts() -> dict[str, str]:
    """AWS's account that has the image, by region."""
    table = distribution("sagemaker-core").locate_file(
        f"sagemaker/core/image_uri_config/{FRAMEWORK}.json"
    )
    versions = json.loads(Path(str(table)).read_text())["training"]["versions"]
    return dict(versions[VERSION]["registries"])
