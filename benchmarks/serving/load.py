"""Clients that each send a photo, wait for the answer, and send the next one."""

import re
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from benchmarks.training.measure import BenchmarkError, Measured

ANSWER_SECONDS = 60  # that a client waits
LAST_CHUNK = b"\r\n0\r\n\r\n"
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class Target:
    """Where photos are sent: 127.0.0.1."""

    port: int
    path: str


class Connection:
    """One kept open, over a bare socket: http.client takes as long for a photo as a server does
    besides decoding and counting it, and on the same cores."""

    def __init__(self, target: Target) -> None:
        """Raises OSError when nobody listens."""
        self._target = target
        self._socket = socket.create_connection(("127.0.0.1", target.port), ANSWER_SECONDS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, photo: bytes) -> None:
        """One photo, one answer. Raises BenchmarkError where it is not 200, or OSError."""
        head = (
            f"POST {self._target.path} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            f"Content-Type: image/jpeg\r\nContent-Length: {len(photo)}\r\n\r\n"
        )
        self._socket.sendall(head.encode() + photo)
        answer = b""
        while (end := answer.find(b"\r\n\r\n")) < 0:
            answer += self._receive()
        if not answer.startswith(b"HTTP/1.1 200"):
            raise BenchmarkError(f"{self._target.path} answered {answer[:300]!r}")
        length = LENGTH.search(answer[:end])
        if length:
            while len(answer) < end + 4 + int(length[1]):
                answer += self._receive()
        else:  # in chunks, as Ray Serve does
            while not answer.endswith(LAST_CHUNK):
                answer += self._receive()

    def _receive(self) -> bytes:
        received = self._socket.recv(65536)
        if not received:
            raise BenchmarkError(f"{self._target.path} closed the connection")
        return received

    def close(self) -> None:
        self._socket.close()


def load(
    target: Target, photos: Sequence[bytes], clients: int, warm_up: float, seconds: float
) -> Measured:
    """`clients` at once for `warm_up` seconds and then for `seconds` that count.

    An answer counts when it comes in these seconds; p50 and p99 are of the time that it took.
    """
    begun = time.perf_counter()
    counts_from, counts_to = begun + warm_up, begun + warm_up + seconds
    found: list[tuple[float, float]] = []  # when an answer came, how long it took
    failures: list[Exception] = []

    def client(number: int) -> None:
        try:
            with closing(Connection(target)) as connection:
                while (sent := time.perf_counter()) < counts_to and not failures:
                    connection.send(photos[number % len(photos)])
                    answered = time.perf_counter()
                    found.append((answered, answered - sent))
                    number += clients
        except (OSError, BenchmarkError) as error:
            failures.append(error)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise BenchmarkError(f"under load: {failures[0]!r}")
    taken = [took * 1000 for answered, took in found if counts_from <= answered < counts_to]
    if not taken:
        raise BenchmarkError(f"no answer in {seconds:g} s")
    return Measured(photos=len(taken), seconds=seconds, facts=percentiles(taken))


def percentiles(milliseconds: Sequence[float]) -> dict[str, float]:
    """The facts of a Measured: half of the photos took at most p50, 99 of 100 at most p99."""
    middle, late = np.percentile(milliseconds, [50, 99]).tolist()
    return {"p50 ms": middle, "p99 ms": late}
