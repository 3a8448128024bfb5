"""A small S3 for measuring clients: objects in memory, to be listed and read, no more.

    python -m benchmarks.scale.object_server --objects 5000 --bytes 7000 --latency-ms 20

It answers some 10,000 requests a second on one core, where moto answers a few hundred.
"""

import argparse
import asyncio
import hashlib
import random
import re
from bisect import bisect_left, bisect_right
from itertools import islice, takewhile
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

PAGE = 1000  # keys, as S3
BUCKET = "photos"
RANGE = re.compile(r"(?i)\nrange: bytes=(\d+)-(\d*)")
DATE = "Thu, 26 Nov 2026 00:00:00 GMT"


class ObjectServer:
    """One bucket's objects, by key."""

    def __init__(self, objects: dict[str, bytes], latency: float) -> None:
        self._objects = objects
        self._keys = sorted(objects)
        self._latency = latency  # seconds, of each answer
        self._heads = {key: _head("200 OK", content) for key, content in objects.items()}

    def answer(self, head: str) -> bytes:
        """The whole response to a request without a body: HEAD or GET of an object, of a part of
        it, or of a listing."""
        method, target, _ = head.split(" ", 2)
        url = urlsplit(target)
        key = unquote(url.path).removeprefix(f"/{BUCKET}").removeprefix("/")
        if not key:
            query = {name: values[0] for name, values in parse_qs(url.query).items()}
            return _answer("200 OK", self._listing(query))
        if key not in self._objects:
            return _answer("404 Not Found", _error("NoSuchKey"))
        if method == "HEAD":
            return self._heads[key]
        content = self._objects[key]
        if part := RANGE.search(head):
            first, last = int(part[1]), min(int(part[2] or len(content)), len(content) - 1)
            span = f"Content-Range: bytes {first}-{last}/{len(content)}\r\n"
            return _answer("206 Partial Content", content[first : last + 1], span)
        return self._heads[key] + content

    def _listing(self, query: dict[str, str]) -> bytes:
        prefix = query.get("prefix", "")
        after = query.get("continuation-token") or query.get("start-after", "")
        first = bisect_right(self._keys, after) if after else bisect_left(self._keys, prefix)
        found = islice(self._keys, first, first + PAGE + 1)
        keys = list(takewhile(lambda key: key.startswith(prefix), found))
        page = keys[:PAGE]
        entries = "".join(
            f"<Contents><Key>{escape(key)}</Key><LastModified>2026-11-26T00:00:00.000Z"
            f"</LastModified><ETag>&quot;0&quot;</ETag><Size>{len(self._objects[key])}</Size>"
            "<StorageClass>STANDARD</StorageClass></Contents>"
            for key in page
        )
        more = len(keys) > PAGE
        token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
        return (
            '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult '
            'xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>{BUCKET}</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{len(page)}</KeyCount>"
            f"<MaxKeys>{PAGE}</MaxKeys><IsTruncated>{str(more).lower()}</IsTruncated>"
            f"{token}{entries}</ListBucketResult>"
        ).encode()

    async def serve(self, port: int) -> None:
        """Until it is ended."""
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: _Connection(self), "127.0.0.1", port)
        await server.serve_forever()

    def send(self, transport: asyncio.Transport, answer: bytes) -> None:
        if self._latency:
            asyncio.get_running_loop().call_later(self._latency, transport.write, answer)
        else:
            transport.write(answer)


class _Connection(asyncio.Protocol):
    """Requests without a body, one after the other."""

    def __init__(self, server: ObjectServer) -> None:
        self._server = server
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (end := self._received.find(b"\r\n\r\n")) >= 0:
            head = self._received[:end].decode()
            self._received = self._received[end + 4 :]
            self._server.send(self._transport, self._server.answer(head))


def _head(status: str, content: bytes) -> bytes:
    etag = hashlib.md5(content, usedforsecurity=False).hexdigest()
    headers = f'ETag: "{etag}"\r\nAccept-Ranges: bytes\r\nContent-Length: {len(content)}\r\n'
    return f"HTTP/1.1 {status}\r\nLast-Modified: {DATE}\r\n{headers}\r\n".encode()


def _answer(status: str, body: bytes, headers: str = "") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nLast-Modified: {DATE}\r\n{headers}"
    return f"{head}\r\n".encode() + body


def _error(code: str) -> bytes:
    return f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()


def keys(objects: int, prefix: str = "bin-images/", suffix: str = ".jpg") -> list[str]:
    """Keys like those of the public bucket."""
    return [f"{prefix}{number:05d}{suffix}" for number in range(objects)]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scale.object_server",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--objects", type=int, default=5000, help="how many (%(default)s)")
    parser.add_argument("--bytes", type=int, default=7000, help="of each (%(default)s)")
    parser.add_argument("--prefix", default="bin-images/", help="of their keys (%(default)s)")
    parser.add_argument("--suffix", default=".jpg", help="of their keys (%(default)s)")
    parser.add_argument("--latency-ms", type=float, default=0, help="of each answer (%(default)s)")
    parser.add_argument("--port", type=int, required=True, help="on 127.0.0.1")
    args = parser.parse_args()
    generator = random.Random(0)
    objects = {
        key: generator.randbytes(args.bytes) for key in keys(args.objects, args.prefix, args.suffix)
    }
    asyncio.run(ObjectServer(objects, args.latency_ms / 1000).serve(args.port))


if __name__ == "__main__":
    main()
