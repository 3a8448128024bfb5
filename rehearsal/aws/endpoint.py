"""What SageMaker does with an endpoint: fetches the model, starts the container's `serve`, and
answers sagemaker-runtime."""

import json
import sys
import tarfile
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType

import boto3

from common.files import ROOT
from rehearsal.aws.http_server import serve
from rehearsal.aws.ports import free_port
from rehearsal.aws.processes import Processes
from rehearsal.aws.waiting import NotReadyError, wait_until

SERVE = ROOT / "serving" / "container" / "serve"


class EndpointFailedError(RuntimeError):
    """The container did not come up; the message is one line."""


class HostedEndpoint:
    """A deployed endpoint, hosted here: `url` stands for the runtime of SageMaker in the region."""

    def __init__(
        self, *, processes: Processes, name: str, disk: Path, runtime_port: int = 0
    ) -> None:
        """`runtime_port` is that of `url`; 0 takes a free one."""
        self._processes = processes
        model = disk / "opt" / "ml" / "model"
        model.mkdir(parents=True)
        _fetch_model(name, model)
        port = free_port()
        self.log = disk / "endpoint.log"
        self._process = processes.start(
            [SERVE],
            environment={
                "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
                "SERVING_PORT": str(port),
                "SERVING_MODEL_DIR": str(model),
            },
            log=self.log,
        )
        self._container = f"http://127.0.0.1:{port}"
        try:
            wait_until(self._answers, self._process, name="the container", log=self.log)
        except NotReadyError as error:
            raise EndpointFailedError(str(error)) from error
        self._server = _runtime(name, f"{self._container}/invocations", runtime_port)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "HostedEndpoint":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._processes.end(self._process)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self._container}/ping", timeout=60) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


def _fetch_model(endpoint: str, folder: Path) -> None:
    """Unpack the model that the deployed endpoint names, as SageMaker does, with its role."""
    sagemaker = boto3.client("sagemaker")
    config_name = sagemaker.describe_endpoint(EndpointName=endpoint)["EndpointConfigName"]
    config = sagemaker.describe_endpoint_config(EndpointConfigName=config_name)
    model = sagemaker.describe_model(ModelName=config["ProductionVariants"][0]["ModelName"])
    bucket, _, key = model["PrimaryContainer"]["ModelDataUrl"].removeprefix("s3://").partition("/")
    archive = folder.parent / "model.tar.gz"
    role = boto3.client("sts").assume_role(
        RoleArn=model["ExecutionRoleArn"], RoleSessionName="SageMaker"
    )["Credentials"]
    s3 = boto3.client(
        "s3",
        aws_access_key_id=role["AccessKeyId"],
        aws_secret_access_key=role["SecretAccessKey"],
        aws_session_token=role["SessionToken"],
    )
    s3.download_file(bucket, key, str(archive))
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")


def _runtime(endpoint: str, container: str, port: int) -> ThreadingHTTPServer:
    """Pass POST /endpoints/<endpoint>/invocations on to the container."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            if self.path != f"/endpoints/{endpoint}/invocations":
                message = b'{"message": "Endpoint not found."}'
                return self._reply(400, {"x-amzn-errortype": "ValidationError"}, message)
            names = ("Content-Type", "Accept")
            headers = {name: self.headers[name] for name in names if name in self.headers}
            request = urllib.request.Request(container, body, headers)
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    kind = {"Content-Type": answer.headers["Content-Type"]}
                    return self._reply(200, kind, answer.read())
            except urllib.error.HTTPError as error:
                refusal = {
                    "Message": f"Received client error ({error.code}) from the container",
                    "OriginalStatusCode": error.code,
                    "OriginalMessage": error.read().decode(),
                }
                kind = {"x-amzn-errortype": "ModelError"}
                return self._reply(424, kind, json.dumps(refusal).encode())

        def _reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing: the container logs each request."""

    return serve(Handler, port)
