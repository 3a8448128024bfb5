"""Small HTTP servers, each in a thread that ends when the rehearsal does."""

import sys
import threading
import urllib.error
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from botocore.exceptions import ConnectionError as BotocoreConnectionError
from botocore.exceptions import HTTPClientError

# The client, or a server that the answer comes from, has ended: at Ctrl-C all of them do.
GONE = (ConnectionError, BotocoreConnectionError, HTTPClientError, urllib.error.URLError)


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), GONE):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """Answers requests without logging them."""

    def reply(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing: machines ask every few seconds, and the container logs each request."""


def serve(handler: type[BaseHTTPRequestHandler], port: int = 0) -> ThreadingHTTPServer:
    """Answer on 127.0.0.1, on a free port unless one is given, until it is shut down."""
    server = _Server(("127.0.0.1", port), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
