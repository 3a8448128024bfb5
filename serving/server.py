"""The model behind HTTP, as SageMaker asks for it: GET /ping and POST /invocations.

    python -m serving.server --model runs/my-run/model.tar.gz
    curl --data-binary @bin.jpg -H 'Content-Type: image/jpeg' localhost:8080/invocations

Starlette on uvicorn: pure Python, two small packages, no code of ours between a
socket and a handler. One JSON line per request goes to stdout; SIGTERM answers
what has arrived and ends with exit code 0.
"""

import argparse
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from types import FrameType
from typing import NoReturn

import anyio.to_thread
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.inference import (
    Model,
    ModelError,
    RequestError,
    input_fn,
    load_model,
    output_fn,
    predict_fn,
)

MAX_BODY = 6 * 1024 * 1024  # bytes; SageMaker's own limit for a request
DRAIN_SECONDS = 25  # SageMaker kills a container 30 s after SIGTERM


def create_app(model: Model) -> ASGIApp:
    """The web application around a model that has answered its warm-up."""
    # More photos at once than cores would only hold more decoded photos in memory.
    limiter = anyio.CapacityLimiter(os.cpu_count() or 1)

    def answer(body: bytes, content_type: str | None, accept: str | None) -> tuple[str, str]:
        return output_fn(predict_fn(input_fn(body, content_type), model), accept)

    async def ping(request: Request) -> Response:
        return JSONResponse({"status": "ready"})

    async def invocations(request: Request) -> Response:
        body = await read_body(request)
        headers = request.headers
        text, content_type = await anyio.to_thread.run_sync(
            answer, body, headers.get("content-type"), headers.get("accept"), limiter=limiter
        )
        return Response(text, media_type=content_type)

    app = Starlette(
        routes=[
            Route("/ping", ping, methods=["GET"]),
            Route("/invocations", invocations, methods=["POST"]),
        ],
        exception_handlers={
            RequestError: refuse_request,
            HTTPException: refuse_route,
            Exception: report_failure,
        },
    )
    app.router.redirect_slashes = False
    return RequestLog(app)


async def read_body(request: Request) -> bytes:
    """The request's body; raises RequestError (413) as soon as it exceeds MAX_BODY."""
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY:
                raise RequestError(
                    413, f"the photo is larger than {MAX_BODY} bytes, send a smaller one"
                )
    except ClientDisconnect as error:
        raise RequestError(400, "the connection ended before the whole body came") from error
    return bytes(body)


async def refuse_request(request: Request, error: Exception) -> Response:
    """A handler's RequestError, as its status and one line of JSON."""
    assert isinstance(error, RequestError)
    return error_response(request, error.status, str(error))


async def refuse_route(request: Request, error: Exception) -> Response:
    """An unknown path (404) or a wrong method (405)."""
    assert isinstance(error, HTTPException)
    message = f"{error.detail}: this server answers GET /ping and POST /invocations"
    response = error_response(request, error.status_code, message)
    response.headers.update(error.headers or {})
    return response


async def report_failure(request: Request, error: Exception) -> Response:
    """Our own mistake (500): the traceback goes to stderr, never to the client."""
    return error_response(request, 500, "the server failed on this request, see its log")


def error_response(request: Request, status: int, message: str) -> Response:
    """One line of JSON; the message is noted for the request's log line as well."""
    request.scope["error"] = message
    return JSONResponse({"error": message}, status_code=status)


class RequestLog:
    """ASGI application around another one; prints one JSON line for each request."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, then print when it came, what it was and how it ended."""
        record: dict[str, str | int | float] = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "method": scope["method"],
            "path": scope["path"],
        }
        start = time.perf_counter()

        async def noting_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                record["status"] = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noting_send)
        finally:
            record["milliseconds"] = round((time.perf_counter() - start) * 1000, 1)
            if "error" in scope:
                record["error"] = scope["error"]
            print(json.dumps(record), flush=True)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Flags win over environment variables, which win over the defaults."""
    environment = os.environ
    parser = argparse.ArgumentParser(
        prog="python -m serving.server",
        description="Serve a trained model over HTTP: GET /ping, POST /invocations.",
        epilog="Each flag's environment variable is named in its help; a flag wins.",
    )
    parser.add_argument(
        "--model",
        metavar="FOLDER_OR_TAR",
        default=environment.get("SERVING_MODEL_DIR", "/opt/ml/model"),
        help="model folder or model.tar.gz (SERVING_MODEL_DIR; now %(default)s)",
    )
    parser.add_argument(
        "--host",
        default=environment.get("SERVING_HOST", "127.0.0.1"),
        help="address to listen on (SERVING_HOST; now %(default)s)",
    )
    parser.add_argument(
        "--port",
        type=_port,
        default=environment.get("SAGEMAKER_BIND_TO_PORT", environment.get("SERVING_PORT", "8080")),
        help="port; 0 picks a free one, printed in the first line of output "
        "(SAGEMAKER_BIND_TO_PORT, SERVING_PORT; now %(default)s)",
    )
    parser.add_argument(
        "--threads",
        type=_threads,
        default=environment.get("SERVING_THREADS", "0"),
        help="ONNX Runtime threads; 0 is one per core (SERVING_THREADS; now %(default)s)",
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Load the model, let it answer a warm-up, then listen until SIGTERM or Ctrl-C."""
    # uvicorn raises the signal again after it has finished its requests.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    settings = parse_arguments(arguments)
    try:
        model = load_model(settings.model, settings.threads)
        listener = socket.create_server((settings.host, settings.port))
    except ModelError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: cannot listen on {settings.host}:{settings.port}: {error.strerror}")
    host, port = listener.getsockname()[:2]
    print(json.dumps({"listening": f"http://{host}:{port}", "model": settings.model}), flush=True)
    config = uvicorn.Config(
        create_app(model),
        access_log=False,
        lifespan="off",
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=DRAIN_SECONDS,
        ws="none",
    )
    uvicorn.Server(config).run(sockets=[listener])


def _port(text: str) -> int:
    number = int(text)
    if not 0 <= number <= 65535:
        raise argparse.ArgumentTypeError(f"{number} is not a port, 0 to 65535 are")
    return number


def _threads(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} is below 0")
    return number


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(0)


if __name__ == "__main__":
    main()
