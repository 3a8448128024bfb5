"""The web application: GET /ping, POST /invocations, GET /openapi.json.

Starlette is small and pure Python, and needs no code of ours between socket and handler.
"""

import asyncio
import json
import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.container.artifact import Model
from serving.container.inference import REVIEW_BELOW, answer_type, input_fn, output_fn, predict_fn
from serving.container.questions import JSON_TYPE, RequestError, read_record

MAX_BODY = 6 * 1024 * 1024  # bytes; SageMaker's own limit, which is 4 MB for a serverless endpoint
BODY_SECONDS = 30  # for the whole body, as a slow client occupies a place in the queue
QUEUE = 64  # maximum number of requests, each of which may hold a body of MAX_BODY
PATIENCE_SECONDS = 50  # after which nobody waits for an answer: SageMaker's timeout is 60
OPENAPI = Path(__file__).with_name("openapi.json")
PAGE = Path(__file__).with_name("page.html")
# The page may only contact this server and show the dropped photo.
PAGE_POLICY = (
    "default-src 'none'; connect-src 'self'; img-src blob:; "
    "style-src 'unsafe-inline'; script-src 'unsafe-inline'"
)


def create_app(
    model: Model,
    *,
    at_once: int | None = None,
    queue: int = QUEUE,
    review_below: float = REVIEW_BELOW,
    page: bool = False,
) -> ASGIApp:
    """The application around a loaded model.

    `at_once` requests are decoded and counted concurrently, by default as many as there are cores.
    Beyond `queue` requests, further ones are answered 503. `page` adds a page for people at `/`.
    """
    counting = Counting(model, at_once or os.cpu_count() or 1, queue, review_below)
    routes = [
        Route("/ping", ping, methods=["GET"]),
        Route("/invocations", counting.answer, methods=["POST"]),
        Route("/openapi.json", openapi, methods=["GET"]),
    ]
    if page:
        routes.append(Route("/", show_page, methods=["GET"]))
    app = Starlette(
        routes=routes,
        exception_handlers={
            RequestError: refuse_request,
            HTTPException: refuse_route,
            Exception: report_failure,
        },
    )
    app.router.redirect_slashes = False
    return RequestLog(app)


class Counting:
    """POST /invocations: a bounded queue of requests, and fewer threads that count."""

    def __init__(self, model: Model, at_once: int, queue: int, review_below: float) -> None:
        self._model, self._queue, self._review_below = model, queue, review_below
        # Threads take their next request without waiting for the event loop. More threads than
        # cores would only hold more decoded photos in memory.
        self._pool = ThreadPoolExecutor(at_once)
        self._inside = 0

    async def answer(self, request: Request) -> Response:
        if self._inside >= self._queue:
            message = f"{self._queue} requests are waiting already, try again in a second"
            raise RequestError(503, message)
        self._inside += 1
        arrived = time.monotonic()
        try:
            record = read_record(_record(request))
            answer_type(request.headers.get("accept"))  # refuse before any work is done
            body = await read_body(request)
            text, content_type = await asyncio.get_running_loop().run_in_executor(
                self._pool,
                self._answer,
                body,
                request.headers.get("content-type"),
                request.headers.get("accept"),
                record,
                arrived,
            )
        finally:
            self._inside -= 1
        return Response(text, media_type=content_type)

    def _answer(
        self,
        body: bytes,
        content_type: str | None,
        accept: str | None,
        record: int | None,
        arrived: float,
    ) -> tuple[str, str]:
        if time.monotonic() - arrived > PATIENCE_SECONDS:
            raise RequestError(
                503, f"the request waited over {PATIENCE_SECONDS} s, try again later"
            )
        questions = input_fn(body, content_type, record)
        return output_fn(predict_fn(questions, self._model, self._review_below), accept)


def _record(request: Request) -> str | None:
    """The inventory record: ?record=3, or with SageMaker, whose callers cannot pass a query string,
    the custom attributes "record=3". Raises RequestError (400) for another query."""
    attributes = request.headers.get("x-amzn-sagemaker-custom-attributes", "")
    if attributes.startswith("record="):
        return attributes.removeprefix("record=")
    if unknown := sorted(request.query_params.keys() - {"record"}):
        raise RequestError(400, f"the query has {unknown[0][:20]!r}, send `record` or nothing")
    return request.query_params.get("record")


async def ping(request: Request) -> Response:
    return JSONResponse({"status": "ready"})


async def openapi(request: Request) -> Response:
    return Response(OPENAPI.read_text(), media_type="application/json")


async def show_page(request: Request) -> Response:
    return HTMLResponse(PAGE.read_text(), headers={"Content-Security-Policy": PAGE_POLICY})


async def read_body(request: Request) -> bytes:
    """The request's body; raises RequestError as soon as it exceeds MAX_BODY (413), or when it
    takes too long (408)."""
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BODY:
                    raise RequestError(413, _too_large(request))
    except ClientDisconnect as error:
        raise RequestError(
            400, "the connection ended before the whole body was received"
        ) from error
    except TimeoutError as error:
        message = f"the body took more than {BODY_SECONDS} s, send it at once"
        raise RequestError(408, message) from error
    return bytes(body)


def _too_large(request: Request) -> str:
    """In JSON, pixels take many times the bytes of a JPEG, and base64 a third more."""
    sent = request.headers.get("content-type", "").lower()
    instead = "the JPEG itself, as image/jpeg" if sent.startswith(JSON_TYPE) else "a smaller photo"
    return f"the body is larger than {MAX_BODY} bytes, send {instead}"


async def refuse_request(request: Request, error: Exception) -> Response:
    """Answer a handler's RequestError with its status and one line of JSON."""
    assert isinstance(error, RequestError)
    headers = {"Retry-After": "1"} if error.status == 503 else None
    return error_response(request, error.status, str(error), headers)


async def refuse_route(request: Request, error: Exception) -> Response:
    """Answer an unknown path (404) or a wrong method (405)."""
    assert isinstance(error, HTTPException)
    message = f"{error.detail}: this server answers GET /ping and POST /invocations"
    return error_response(request, error.status_code, message, error.headers)


async def report_failure(request: Request, error: Exception) -> Response:
    """Answer a bug of ours (500); the traceback goes to stderr, never to the client."""
    return error_response(request, 500, "the server failed on this request, see its log")


def error_response(
    request: Request, status: int, message: str, headers: Mapping[str, str] | None = None
) -> Response:
    """One line of JSON, whose message also goes into the request's log line."""
    request.scope["error"] = message
    return JSONResponse({"error": message}, status, headers)


class RequestLog:
    """ASGI middleware that prints one JSON line for each request."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, then print its time, method, path, status and duration."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
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
