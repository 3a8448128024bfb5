"""A stand-in for the Instance Metadata Service, version 2, of one machine."""

import json
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from rehearsal.aws.http_server import serve

TOKEN_PATH = "/latest/api/token"
CREDENTIALS_PATH = "/latest/meta-data/iam/security-credentials/"
NOTICE_PATH = "/latest/meta-data/spot/instance-action"
REBALANCE_PATH = "/latest/meta-data/events/recommendations/rebalance"


@dataclass(kw_only=True)
class Metadata:
    """What one machine is told about itself."""

    instance_id: str
    instance_type: str
    zone: str
    life_cycle: str  # spot or on-demand
    role: str
    credentials: Callable[[], dict[str, str]]  # asked each time, as they expire
    notice_seen: threading.Event = field(default_factory=threading.Event)
    _terminates_at: datetime | None = None
    _rebalance_since: datetime | None = None

    def give_notice(self, seconds: float) -> None:
        """The machine is taken back in `seconds`; `notice_seen` is set when it has read that."""
        self._terminates_at = datetime.now(UTC) + timedelta(seconds=seconds)

    def recommend_rebalance(self) -> None:
        """An interruption has become more likely; EC2 may say so before its notice."""
        self._rebalance_since = datetime.now(UTC)

    def answer(self, path: str) -> str | None:
        """The text at `path`, or None where there is nothing."""
        if path == CREDENTIALS_PATH:
            return self.role
        if path == CREDENTIALS_PATH + self.role:
            return json.dumps(self.credentials())
        if path == NOTICE_PATH and self._terminates_at:
            self.notice_seen.set()
            return json.dumps({"action": "terminate", "time": _stamp(self._terminates_at)})
        if path == REBALANCE_PATH and self._rebalance_since:
            return json.dumps({"noticeTime": _stamp(self._rebalance_since)})
        return {
            "/latest/meta-data/instance-id": self.instance_id,
            "/latest/meta-data/instance-type": self.instance_type,
            "/latest/meta-data/instance-life-cycle": self.life_cycle,
            "/latest/meta-data/placement/availability-zone": self.zone,
            "/latest/meta-data/placement/region": self.zone[:-1],
        }.get(path)


def _stamp(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


def start_imds(metadata: Metadata) -> ThreadingHTTPServer:
    """Serve `metadata` on a free port of 127.0.0.1 until the server is shut down.

    The first request for each path gets no answer, as may happen on AWS.
    """
    tokens: set[str] = set()
    asked: set[str] = set()

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            if (
                self.path != TOKEN_PATH
                or "X-aws-ec2-metadata-token-ttl-seconds" not in self.headers
            ):
                return self._reply(HTTPStatus.BAD_REQUEST, "")
            if self._first_time():
                return None
            token = secrets.token_urlsafe(32)
            tokens.add(token)
            return self._reply(HTTPStatus.OK, token, ttl="21600")

        def do_GET(self) -> None:
            if self.headers.get("X-aws-ec2-metadata-token") not in tokens:
                return self._reply(HTTPStatus.UNAUTHORIZED, "")  # version 1 is off
            if self._first_time():
                return None
            text = metadata.answer(self.path)
            if text is None:
                return self._reply(HTTPStatus.NOT_FOUND, "")
            return self._reply(HTTPStatus.OK, text)

        def _first_time(self) -> bool:
            first = self.path not in asked
            asked.add(self.path)
            return first

        def _reply(self, status: HTTPStatus, text: str, ttl: str = "") -> None:
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain")
            self.send_header("Content-Length", str(len(body)))
            if ttl:
                self.send_header("X-aws-ec2-metadata-token-ttl-seconds", ttl)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing: a machine asks every few seconds."""

    return serve(Handler)
