"""A stand-in for the Instance Metadata Service, version 2, of one machine."""

import json
import secrets
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from http.server import ThreadingHTTPServer

from rehearsal.aws.http_server import Handler, serve

TOKEN_PATH = "/latest/api/token"
TTL_HEADER = "X-aws-ec2-metadata-token-ttl-seconds"
CREDENTIALS_PATH = "/latest/meta-data/iam/security-credentials/"
NOTICE_PATH = "/latest/meta-data/spot/instance-action"
REBALANCE_PATH = "/latest/meta-data/events/recommendations/rebalance"


@dataclass(kw_only=True)
class Metadata:
    """What the service tells one machine about itself."""

    instance_id: str
    instance_type: str
    zone: str
    life_cycle: str  # spot or on-demand
    role: str
    credentials: Callable[[], dict[str, str]]  # called for each request, as they expire
    notice_seen: threading.Event = field(default_factory=threading.Event)
    _terminates_at: datetime | None = None
    _rebalance_since: datetime | None = None

    def give_notice(self, seconds: float) -> None:
        """Announce the end in `seconds`; `notice_seen` is set once the machine has read that."""
        self._terminates_at = datetime.now(UTC) + timedelta(seconds=seconds)

    def recommend_rebalance(self) -> None:
        """Say that an interruption has become more likely, as EC2 may do before its notice."""
        self._rebalance_since = datetime.now(UTC)

    def answer(self, path: str) -> str | None:
        """The text at `path`, or None if there is none."""
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

    The first request for each path gets no answer, which can happen on AWS.
    """
    tokens: set[str] = set()
    asked: set[str] = set()

    class Service(Handler):
        def do_PUT(self) -> None:
            if self.path != TOKEN_PATH or TTL_HEADER not in self.headers:
                return self._reply(HTTPStatus.BAD_REQUEST, "")
            if self._first_time():
                return None
            token = secrets.token_urlsafe(32)
            tokens.add(token)
            return self._reply(HTTPStatus.OK, token, {TTL_HEADER: "21600"})

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

        def _reply(self, status: HTTPStatus, text: str, headers: Mapping[str, str] = {}) -> None:
            self.reply(status, text.encode(), {"Content-Type": "text/plain", **headers})

    return serve(Service)
