"""Check whether SageMaker would start the image of the setting `serving_image`.

By default, the image in cdk.json is checked; `-c` changes a setting, as for `cdk deploy`:

    python -m serving.image_check
    python -m serving.image_check -c name=value

SageMaker requires a single image in Docker's format, for the processor of the endpoint's machines.
"""

import json
import re
import sys
import urllib.request
from collections.abc import Sequence
from typing import Annotated, Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError
from cyclopts import Parameter

from common.command import in_one_line, interruptible
from common.flags import command_line
from costs.settings import context as read_context
from infra.config import Config

# Listed in the request, as ECR may otherwise convert the stored format.
DOCKER = "application/vnd.docker.distribution.manifest.v2+json"
INDEXES = (
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.index.v1+json",
)
STORED = (DOCKER, *INDEXES, "application/vnd.oci.image.manifest.v1+json")
URL_SECONDS = 30
# docs.aws.amazon.com/sagemaker/latest/dg/realtime-endpoints-graviton.html: c6g, m7gd, …
GRAVITON = re.compile(r"ml\.[a-z]+\d+g")
# With provenance, the image would become an index.
REBUILD = (
    "docker buildx build --platform linux/{architecture} --provenance=false "
    "--output type=registry,oci-mediatypes=false --tag {tag} serving/container"
)


class ImageError(RuntimeError):
    """SageMaker would refuse the image; the message is one line that says what to do."""


app = command_line("python -m serving.image_check", __doc__)


def check_image(uri: str, architecture: str) -> None:
    """Check the image at `uri`, which has to be for `architecture` (amd64 or arm64), in ECR.

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
            f"{uri} has the media type {media_type}, and SageMaker accepts only Docker's: run "
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
    """The image that ECR has under this tag or digest. Raises ImageError without one."""
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
            f"list-images {flags}` lists"
        )
    return found["images"][0]


def architecture_of(settings: Config) -> str:
    """Processor of the endpoint's machines, as images name it; serverless endpoints use x86."""
    arm = settings.endpoint == "realtime" and GRAVITON.match(settings.endpoint_instance_type)
    return "arm64" if arm else "amd64"


@app.default
def check(
    *,
    context: Annotated[tuple[str, ...], Parameter(name="-c", show_default=False)] = (),
) -> None:
    """Print one line.

    Args:
        context: A setting as NAME=VALUE, as for `cdk deploy`; may be repeated.
    """
    settings = Config.from_context(read_context(context))
    if not settings.serving_image:
        print("serving_image is not set: Docker builds the image during the deploy")
        return
    check_image(settings.serving_image, architecture_of(settings))
    print(f"{settings.serving_image}: SageMaker accepts its format and processor")


@interruptible()
def main(arguments: Sequence[str] | None = None) -> None:
    """Exit code 1 when SageMaker would refuse the image."""
    try:
        app(arguments)
    except (BotoCoreError, ClientError, ImageError, OSError, ValueError) as error:
        sys.exit(f"error: {in_one_line(error)}")


if __name__ == "__main__":
    main()
