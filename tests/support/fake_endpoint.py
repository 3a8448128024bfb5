"""SageMaker's runtime in front of our own server."""

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import ClientError
from starlette.testclient import TestClient

from serving.client import predictor
from serving.container.application import create_app
from serving.container.artifact import load_model


def refusal(code: str, status: int, message: str = "", **details: object) -> ClientError:
    reply: Any = {
        "Error": {"Code": code, "Message": message},
        "ResponseMetadata": {"HTTPStatusCode": status},
        **details,
    }
    return ClientError(reply, "InvokeEndpoint")


class FakeRuntime:
    """boto3's sagemaker-runtime in front of our own server, wrapping refusals as SageMaker does."""

    def __init__(self, folder: Path) -> None:
        self.server = TestClient(create_app(load_model(folder)))
        self.bodies: list[bytes] = []
        self.failures: list[ClientError] = []  # of the next calls

    def invoke_endpoint(self, **request: Any) -> dict[str, Any]:
        self.bodies.append(request["Body"])
        if self.failures:
            raise self.failures.pop(0)
        name = request["EndpointName"]
        if name != "bins":
            raise refusal("ValidationError", 400, f"Endpoint {name} not found")
        if len(request["Body"]) > 4_194_304:
            raise refusal("413", 413)
        response = self.server.post(
            "/invocations",
            content=request["Body"],
            headers={"content-type": request["ContentType"], "accept": request["Accept"]},
        )
        if response.status_code != 200:
            raise refusal(
                "ModelError",
                424,
                OriginalStatusCode=response.status_code,
                OriginalMessage=response.text,
            )
        return {"Body": io.BytesIO(response.content)}


def put_before_boto3(runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have ImagePredictor ask `runtime`."""

    def client(name: str, **_: Any) -> Any:
        return runtime if name == "sagemaker-runtime" else None

    monkeypatch.setattr(predictor, "boto3", SimpleNamespace(client=client))
