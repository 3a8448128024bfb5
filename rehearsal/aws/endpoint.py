"""A SageMaker endpoint on this machine: the container's `serve` with the deployed model, behind
the API of sagemaker-runtime."""

import json
import sys
import tarfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path

import boto3

from common.files import ROOT
from rehearsal.aws.http_server import Handler, serve
from rehearsal.aws.ports import free_port
from rehearsal.aws.processes import Processes
from rehearsal.aws.roles import s3_as_sagemaker
from rehearsal.aws.waiting import wait_until

SERVE = ROOT / "serving" / "container" / "serve"


@contextmanager
def hosted_endpoint(
    processes: Processes, name: str, disk: Path, *, runtime_port: int = 0
) -> Iterator[str]:
    """Host a deployed endpoint; yields the URL of sagemaker-runtime that knows it.

    `runtime_port` is the port of that URL; 0 takes a free one. Raises NotReadyError when the
    container does not come up.
    """
    model = disk / "opt" / "ml" / "model"
    model.mkdir(parents=True)
    _fetch_model(name, model)
    port = free_port()
    container, log = f"http://127.0.0.1:{port}", disk / "endpoint.log"
    process = processes.start(
        [SERVE],
        environment={
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
            "SERVING_PORT": str(port),
            "SERVING_MODEL_DIR": str(model),
        },
        log=log,
    )
    wait_until(lambda: _answers(container), process, name="the container", log=log)
    server = _runtime(name, f"{container}/invocations", runtime_port)
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        processes.end(process)


def _answers(container: str) -> bool:
    try:
        with urllib.request.urlopen(f"{container}/ping", timeout=60) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _fetch_model(endpoint: str, folder: Path) -> None:
    """Unpack the model of the deployed endpoint, fetched with its role, as SageMaker does."""
    sagemaker = boto3.client("sagemaker")
    config_name = sagemaker.describe_endpoint(EndpointName=endpoint)["EndpointConfigName"]
    config = sagemaker.describe_endpoint_config(EndpointConfigName=config_name)
    model = sagemaker.describe_model(ModelName=config["ProductionVariants"][0]["ModelName"])
    bucket, _, key = model["PrimaryContainer"]["ModelDataUrl"].removeprefix("s3://").partition("/")
    archive = folder.parent / "model.tar.gz"
    s3_as_sagemaker(model["ExecutionRoleArn"]).download_file(bucket, key, str(archive))
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")


def _runtime(endpoint: str, container: str, port: int) -> ThreadingHTTPServer:
    """Pass POST /endpoints/<endpoint>/invocations on to the container."""

    class Runtime(Handler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            if self.path != f"/endpoints/{endpoint}/invocations":
                message = b'{"message": "Endpoint not found."}'
                return self.reply(400, message, {"x-amzn-errortype": "ValidationError"})
            names = ("Content-Type", "Accept")
            headers = {name: self.headers[name] for name in names if name in self.headers}
            request = urllib.request.Request(container, body, headers)
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    kind = {"Content-Type": answer.headers["Content-Type"]}
                    return self.reply(200, answer.read(), kind)
            except urllib.error.HTTPError as error:
                refusal = {
                    "Message": f"Received client error ({error.code}) from the container",
                    "OriginalStatusCode": error.code,
                    "OriginalMessage": error.read().decode(),
                }
                kind = {"x-amzn-errortype": "ModelError"}
                return self.reply(424, json.dumps(refusal).encode(), kind)

    return serve(Runtime, port)
