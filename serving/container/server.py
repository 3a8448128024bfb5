"""The model behind HTTP, as SageMaker asks for it: GET /ping and POST /invocations.

    python -m serving.container.server --model runs/my-run/model.tar.gz --page
    curl --data-binary @bin.jpg -H 'Content-Type: image/jpeg' localhost:8080/invocations

One JSON line per request goes to stdout; SIGTERM answers the requests that have begun and ends
with exit code 0.
"""

import argparse
import json
import math
import os
import re
import signal
import socket
import sys
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

import uvicorn

from serving.container.application import QUEUE, create_app
from serving.container.artifact import PRECISIONS, ModelError, load_model
from serving.container.cores import available_cores
from serving.container.inference import REVIEW_BELOW
from serving.container.memory import give_back_large_blocks

DRAIN_SECONDS = 25  # SageMaker kills a container 30 s after SIGTERM


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Flags win over environment variables, which win over the defaults."""
    environment = os.environ
    parser = argparse.ArgumentParser(
        prog="python -m serving.container.server",
        description="Serve a trained model over HTTP: GET /ping, POST /invocations.",
        epilog="The environment variable of a flag is named in its help; a flag wins.",
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
        type=port_number,
        default=environment.get("SAGEMAKER_BIND_TO_PORT", environment.get("SERVING_PORT", "8080")),
        help="port; 0 picks a free one, printed in the first line of output "
        "(SAGEMAKER_BIND_TO_PORT, SERVING_PORT; now %(default)s)",
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default=environment.get("SERVING_PRECISION", "auto"),
        help="auto: int8 where the model has it and the CPU has VNNI, else float32 "
        "(SERVING_PRECISION; now %(default)s)",
    )
    parser.add_argument(
        "--threads",
        type=positive_number,
        default=environment.get("SERVING_THREADS", "1"),
        help="for one photo; as many photos are counted at once as the cores allow "
        "(SERVING_THREADS; now %(default)s)",
    )
    parser.add_argument(
        "--queue",
        type=positive_number,
        default=environment.get("SERVING_QUEUE", str(QUEUE)),
        help="requests inside at most; further ones are answered 503 (SERVING_QUEUE; now "
        "%(default)s)",
    )
    parser.add_argument(
        "--review-below",
        type=probability,
        default=environment.get("SERVING_REVIEW_BELOW", str(REVIEW_BELOW)),
        help='an answer says "review" when its count, or the inventory record that was sent along, '
        "is less probable than this (SERVING_REVIEW_BELOW; now %(default)s)",
    )
    parser.add_argument(
        "--page",
        action="store_true",
        help="also show a page at / where a photo can be dropped",
    )
    args = parser.parse_args(arguments)
    warn_of_unknown_variables(parser.format_help())
    # An environment variable passes argparse's choices unchecked.
    if args.precision not in PRECISIONS:
        parser.error(f"SERVING_PRECISION is {args.precision!r}, must be one of {PRECISIONS}")
    if args.threads > (os.cpu_count() or 1):
        parser.error(f"--threads {args.threads}: this machine has {os.cpu_count()} cores")
    return args


def warn_of_unknown_variables(help_text: str) -> None:
    """A slip in the name of a variable would go unseen."""
    known = set(re.findall(r"SERVING_\w+", help_text))
    for name in sorted(os.environ):
        if name.startswith("SERVING_") and name not in known:
            print(f"warning: {name} is no setting of this server", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> None:
    """Load the model, let it answer a warm-up, then listen until SIGTERM or Ctrl-C."""
    # uvicorn raises the signal again after it has finished its requests.
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
    """A listening TCP socket whose connections send each piece of an answer at once.

    Else the body waits 40 ms for the client to acknowledge the head (Nagle's algorithm), as
    asyncio does not switch that off for a socket that was made by `create_server`.
    """
    listener = socket.create_server((host, port))
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def port_number(text: str) -> int:
    if not (text.isdecimal() and int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"{text!r} is not a port, 0 to 65535 are")
    return int(text)


def positive_number(text: str) -> int:
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def probability(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no probability, 0 to 1")
    return number


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(0)


if __name__ == "__main__":
    main()
