"""A small HTTP server in a thread, which ends when the rehearsal does."""

import sys
import threading
import urllib.error
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from botocore.exceptions import ConnectionError as BotocoreConnectionError
from botocore.exceptions import HTTPClientError

# The client, or what an answer is made from, has ended, as all do at Ctrl-C, in any order.
GONE = (ConnectionError, BotocoreConnectionError, HTTPClientError, urllib.error.URLError)


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), GONE):
            super().handle_error(request, client_address)


def serve(handler: type[BaseHTTPRequestHandler], port: int = 0) -> ThreadingHTTPServer:
    """Answer on 127.0.0.1, on a free port unless one is given, until it is shut down."""
    server = _Server(("127.0.0.1", port), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
