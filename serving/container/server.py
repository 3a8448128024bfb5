"""Serve a trained model over HTTP, as SageMaker expects it: GET /ping and POST /invocations.

For example:

    python -m serving.container.server --model out/model --page
    curl --data-binary @bin.jpg -H 'Content-Type: image/jpeg' \\
        localhost:8080/invocations

A flag takes precedence over its environment variable. One JSON line for each request is written to
standard output. After SIGTERM, the server answers the requests that have begun and exits with
code 0.
"""

import json
import os
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Annotated, NoReturn

import uvicorn
from cyclopts import App, Parameter, Token
from cyclopts.validators import Number
from rich.console import Console

from serving.container.application import QUEUE, create_app
from serving.container.artifact import AnyPrecision, ModelError, load_model
from serving.container.cores import available_cores
from serving.container.inference import REVIEW_BELOW
from serving.container.memory import give_back_large_blocks

DRAIN_SECONDS = 25  # SageMaker kills a container 30 s after SIGTERM


def _to_whole_number(_: object, tokens: Sequence[Token]) -> int:
    """cyclopts itself rounds 1.5."""
    if not (tokens[0].value.isascii() and tokens[0].value.isdecimal()):
        raise ValueError(f'"{tokens[0].value}" is not a whole number')
    return int(tokens[0].value)


def _at_most_all_cores(_: type, threads: int) -> None:
    if threads > (os.cpu_count() or 1):
        raise ValueError(f"This machine has {os.cpu_count()} cores.")


WholeNumber = Annotated[int, Parameter(converter=_to_whole_number, n_tokens=1)]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the server is started."""

    model: Annotated[str, Parameter(env_var="SERVING_MODEL_DIR")] = "/opt/ml/model"
    """Model folder or model.tar.gz."""
    host: Annotated[str, Parameter(env_var="SERVING_HOST")] = "127.0.0.1"
    """Address to listen on."""
    port: Annotated[
        WholeNumber,
        Parameter(env_var=("SAGEMAKER_BIND_TO_PORT", "SERVING_PORT"), validator=Number(lte=65535)),
    ] = 8080
    """Port to listen on; with 0, a free one is chosen and printed in the first line of output."""
    precision: Annotated[AnyPrecision, Parameter(env_var="SERVING_PRECISION")] = "auto"
    """Precision of the network; auto is int8 if the model has it and the CPU has VNNI, otherwise
    float32."""
    threads: Annotated[
        WholeNumber,
        Parameter(env_var="SERVING_THREADS", validator=(Number(gt=0), _at_most_all_cores)),
    ] = 1
    """Threads for one photo; as many photos are counted at once as the cores allow."""
    queue: Annotated[WholeNumber, Parameter(env_var="SERVING_QUEUE", validator=Number(gt=0))] = (
        QUEUE
    )
    """Maximum number of requests in progress or waiting; further ones are answered 503."""
    review_below: Annotated[
        float, Parameter(env_var="SERVING_REVIEW_BELOW", validator=Number(gte=0, lte=1))
    ] = REVIEW_BELOW
    """An answer says "review" if the probability of its count, or of the inventory record in the
    request, is below this."""
    page: Annotated[bool, Parameter(show_default=False)] = False
    """Also serve a page at / on which a photo can be dropped."""


def parse_arguments(arguments: Sequence[str] | None) -> Settings:
    """Flags take precedence over environment variables, which do over the defaults."""
    app = App(
        "python -m serving.container.server",
        __doc__,
        help_format="markdown",
        version_flags=(),
        default_parameter=Parameter(negative=(), allow_repeating=True),
        error_formatter=lambda error: f"error: {error}",
        error_console=Console(stderr=True, soft_wrap=True, markup=False, highlight=False),
        result_action="return_value",
    )
    app["--help"].show = False
    app.default(Settings)
    flags = app.assemble_argument_collection()
    known = {name for flag in flags for name in flag.parameter.env_var or ()}
    for name in sorted(os.environ):  # a typo in a name would go unnoticed
        if name.startswith("SERVING_") and name not in known:
            print(f"warning: {name} is no setting of this server", file=sys.stderr)
    settings: Settings | None = app(arguments)
    if settings is None:  # after --help
        sys.exit(0)
    return settings


def main(arguments: Sequence[str] | None = None) -> None:
    """Load the model, run a warm-up, then listen until SIGTERM or Ctrl-C."""
    # uvicorn raises the signal again once it has answered its requests.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    settings = parse_arguments(arguments)
    give_back_large_blocks()
    try:
        model = load_model(settings.model, threads=settings.threads, precision=settings.precision)
    except (ModelError, OSError) as error:
        sys.exit(f"error: {error}")
    try:
        listener = listen(settings.host, settings.port)
    except OSError as error:
        sys.exit(f"error: cannot listen on {settings.host}:{settings.port}: {error.strerror}")
    host, port = listener.getsockname()[:2]
    started = {
        "listening": f"http://{host}:{port}",
        "model": settings.model,
        "precision": model.precision,
    }
    print(json.dumps(started), flush=True)
    app = create_app(
        model,
        at_once=max(1, available_cores() // settings.threads),
        queue=settings.queue,
        review_below=settings.review_below,
        page=settings.page,
    )
    config = uvicorn.Config(
        app,
        access_log=False,
        lifespan="off",
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=DRAIN_SECONDS,
        ws="none",
    )
    uvicorn.Server(config).run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """A listening TCP socket whose connections send each piece of an answer immediately.

    Otherwise the body waits 40 ms until the client acknowledges the headers (Nagle's algorithm):
    asyncio does not disable that for a socket made by `create_server`.
    """
    listener = socket.create_server((host, port))
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(0)


if __name__ == "__main__":
    main()
