"""The rehearsal's small servers stay quiet when everything ends, and only then."""

import socket
import urllib.request
from http.server import BaseHTTPRequestHandler

import pytest
from botocore.exceptions import EndpointConnectionError

from rehearsal.aws.http_server import serve

ERRORS = {
    "client gone": (BrokenPipeError(), False),
    "stand-in gone": (EndpointConnectionError(endpoint_url="http://127.0.0.1:1"), False),
    "a mistake": (KeyError("oops"), True),
}


@pytest.mark.parametrize(("error", "told"), ERRORS.values(), ids=ERRORS)
def test_only_an_error_that_is_none_of_the_end_is_told(
    error: Exception, told: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            raise error

    server = serve(Handler)
    try:
        with pytest.raises((OSError, EOFError)):
            urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/", timeout=600)
    finally:
        server.shutdown()
        server.server_close()
    assert ("Traceback" in capfd.readouterr().err) is told


def test_a_server_answers_on_the_port_that_is_asked_for() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = serve(Handler, port)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=600) as answer:
        assert answer.status == 204
    server.shutdown()
    server.server_close()
