"""Before a deploy with `serving_image`: would SageMaker start that image?

    python -m serving.image_check                         the image that cdk.json names
    python -m serving.image_check -c name=value    with another setting, as `cdk deploy` takes it

SageMaker takes one image in Docker's format, for the processor of the endpoint's machines.
"""

import argparse
import json
import re
import sys
import urllib.request
from collections.abc import Sequence
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from common.command import in_one_line, interruptible
from costs.settings import context
from infra.config import Config, SettingError

# Named in the request, or ECR may answer with another format than the one that it stores.
DOCKER = "application/vnd.docker.distribution.manifest.v2+json"
INDEXES = (
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.index.v1+json",
)
STORED = (DOCKER, *INDEXES, "application/vnd.oci.image.manifest.v1+json")
URL_SECONDS = 30
# docs.aws.amazon.com/sagemaker/latest/dg/realtime-endpoints-graviton.html: c6g, m7gd, …
GRAVITON = re.compile(r"ml\.[a-z]+\d+g")
# Provenance would make an index of the image.
REBUILD = (
    "docker buildx build --platform linux/{architecture} --provenance=false "
    "--output type=registry,oci-mediatypes=false --tag {tag} serving"
)


class ImageError(RuntimeError):
    """SageMaker would refuse the image; the message is one line that says what to do."""


def check_image(uri: str, architecture: str) -> None:
    """Ask ECR about the image at `uri`, which has to be for `architecture` (amd64 or arm64).

    Raises ImageError, or an error of botocore or urllib when ECR does not answer.
    """
    registry, _, path = uri.partition("/")
    account, _, _, region, _ = registry.split(".", 4)
    repository, mark, version = re.split("([:@])", path, maxsplit=1)
    ecr: Any = boto3.client("ecr", region_name=region)
    where = {"registryId": account, "repositoryName": repository}
    image = _find(ecr, uri, where, {"imageTag" if mark == ":" else "imageDigest": version})
    tag = uri if mark == ":" else f"{registry}/{repository}:1.0"
    rebuild = REBUILD.format(architecture=architecture, tag=tag)
    media_type = image["imageManifestMediaType"]
    if media_type in INDEXES:
        raise ImageError(
            f"{uri} is an index of several images, which SageMaker refuses: run `{rebuild}`"
        )
    if media_type != DOCKER:
        raise ImageError(
            f"{uri} has the media type {media_type}, and SageMaker takes only Docker's: run "
            f"`{rebuild}`"
        )
    config = json.loads(image["imageManifest"])["config"]["digest"]
    url = ecr.get_download_url_for_layer(**where, layerDigest=config)["downloadUrl"]
    with urllib.request.urlopen(url, timeout=URL_SECONDS) as response:
        built_for = json.load(response)["architecture"]
    if built_for != architecture:
        raise ImageError(
            f"{uri} is for {built_for}, and the endpoint's machines are {architecture}: run "
            f"`{rebuild}`"
        )


def _find(ecr: Any, uri: str, where: dict[str, str], image_id: dict[str, str]) -> Any:
    """What ECR has under this tag or digest. Raises ImageError when that is nothing."""
    flags = f"--repository-name {where['repositoryName']} --region {ecr.meta.region_name}"
    try:
        found = ecr.batch_get_image(**where, imageIds=[image_id], acceptedMediaTypes=list(STORED))
    except ecr.exceptions.RepositoryNotFoundException as error:
        raise ImageError(
            f"{uri}: no such repository: correct serving_image, or run `aws ecr create-repository "
            f"{flags}` and push the image"
        ) from error
    if not found["images"]:
        raise ImageError(
            f"{uri}: no such image in the repository: push it, or choose one that `aws ecr "
            f"list-images {flags}` names"
        )
    return found["images"][0]


def architecture_of(settings: Config) -> str:
    """Processor of the endpoint's machines, as images name it; serverless ones are x86."""
    arm = settings.endpoint == "realtime" and GRAVITON.match(settings.endpoint_instance_type)
    return "arm64" if arm else "amd64"


@interruptible()
def main(arguments: Sequence[str] | None = None) -> None:
    """Print one line; exit code 1 when SageMaker would refuse the image."""
    parser = argparse.ArgumentParser(
        prog="python -m serving.image_check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "-c",
        dest="context",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting, as for `cdk deploy`",
    )
    options = parser.parse_args(arguments)
    try:
        settings = Config.from_context(context(options.context))
        if not settings.serving_image:
            print("serving_image is not set: Docker builds the image during the deploy")
            return
        check_image(settings.serving_image, architecture_of(settings))
        print(f"{settings.serving_image}: SageMaker accepts its format and processor")
    except (BotoCoreError, ClientError, ImageError, OSError, SettingError, ValueError) as error:
        sys.exit(f"error: {in_one_line(error)}")


if __name__ == "__main__":
    main()
