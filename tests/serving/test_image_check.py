import io
import json
from typing import Any

import boto3
import pytest
from botocore.client import BaseClient

from infra.config import Config
from serving import image_check
from serving.image_check import DOCKER, INDEXES, architecture_of, main

REGISTRY = "123456789012.dkr.ecr.eu-west-1.amazonaws.com"
IMAGE = f"{REGISTRY}/team/bins:1.0"
OCI = "application/vnd.oci.image.manifest.v1+json"


@pytest.fixture
def ecr(aws: None) -> Any:
    """ECR in the region of IMAGE, with its repository."""
    ecr = boto3.client("ecr", region_name="eu-west-1")
    ecr.create_repository(repositoryName="team/bins")
    return ecr


def push(
    ecr: Any, monkeypatch: pytest.MonkeyPatch, media_type: str = DOCKER, built_for: str = "amd64"
) -> str:
    """Push an image as IMAGE; its configuration says what it is built for. Returns its digest."""
    config = "sha256:" + "c" * 64
    manifest = {"schemaVersion": 2, "mediaType": media_type, "config": {"digest": config}}
    image = ecr.put_image(
        repositoryName="team/bins",
        imageManifest=json.dumps(manifest),
        imageManifestMediaType=media_type,
        imageTag="1.0",
    )["image"]
    call = BaseClient._make_api_call

    def answer(client: Any, operation: str, request: dict[str, Any]) -> Any:
        if operation != "GetDownloadUrlForLayer":  # which moto lacks
            return call(client, operation, request)
        assert request["layerDigest"] == config
        return {"downloadUrl": "https://layers/config"}

    def read(url: str, timeout: float) -> io.BytesIO:
        assert url == "https://layers/config"
        return io.BytesIO(json.dumps({"architecture": built_for}).encode())

    monkeypatch.setattr(BaseClient, "_make_api_call", answer)
    monkeypatch.setattr(image_check.urllib.request, "urlopen", read)
    return str(image["imageId"]["imageDigest"])


def refused(uri: str = IMAGE, *settings: str) -> str:
    """The line with which the check ends."""
    with pytest.raises(SystemExit) as caught:
        main([word for each in (f"serving_image={uri}", *settings) for word in ("-c", each)])
    (line,) = str(caught.value.code).splitlines()
    assert line.startswith("error: ")
    return line


def test_an_image_in_docker_s_format_is_accepted(
    ecr: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = push(ecr, monkeypatch)
    for uri in (IMAGE, f"{REGISTRY}/team/bins@{digest}"):
        main(["-c", f"serving_image={uri}"])
        assert capsys.readouterr().out == f"{uri}: SageMaker accepts its format and processor\n"


@pytest.mark.parametrize(
    ("media_type", "problem"),
    [(OCI, f"the media type {OCI}"), *((index, "several images") for index in INDEXES)],
)
def test_a_format_that_sagemaker_refuses_is_named_with_the_command_that_rebuilds(
    ecr: Any, monkeypatch: pytest.MonkeyPatch, media_type: str, problem: str
) -> None:
    push(ecr, monkeypatch, media_type)
    line = refused()
    assert problem in line
    assert line.endswith(
        "run `docker buildx build --platform linux/amd64 --provenance=false --output "
        f"type=registry,oci-mediatypes=false --tag {IMAGE} serving/container`"
    )


def test_an_image_for_another_processor_is_refused(
    ecr: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(ecr, monkeypatch, built_for="arm64")
    assert "is for arm64, and the endpoint's machines are amd64: run `docker" in refused()
    graviton = ["-c", "endpoint=realtime", "-c", "endpoint_instance_type=ml.c7g.large"]
    main(["-c", f"serving_image={IMAGE}", *graviton])


@pytest.mark.parametrize(
    ("instance_type", "architecture"),
    [("ml.m5.large", "amd64"), ("ml.g5.xlarge", "amd64"), ("ml.m6gd.large", "arm64")],
)
def test_graviton_machines_are_arm(instance_type: str, architecture: str) -> None:
    settings = {"endpoint": "realtime", "endpoint_instance_type": instance_type}
    assert architecture_of(Config.from_context(settings)) == architecture
    assert architecture_of(Config.from_context({})) == "amd64"


def test_an_image_that_is_not_there_is_named(ecr: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    push(ecr, monkeypatch)
    assert "no such image in the repository: push it" in refused(f"{REGISTRY}/team/bins:2.0")
    assert "no such repository" in refused(f"{REGISTRY}/other:1.0")


def test_without_arguments_the_settings_of_cdk_json_are_checked(
    ecr: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(image_check, "read_context", lambda _: {})
    main([])
    assert capsys.readouterr().out.startswith("serving_image is not set")
    monkeypatch.setattr(image_check, "read_context", lambda _: {"serving_image": IMAGE})
    with pytest.raises(SystemExit, match="no such image"):
        main([])


def test_a_setting_that_is_wrong_is_one_line() -> None:
    assert "should look like" in refused("python:3.11")
