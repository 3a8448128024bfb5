"""Clients that each send a photo, wait for the answer, and send the next one."""

import re
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import closing

import numpy as np

from benchmarks.measure import BenchmarkError, Measured

ANSWER_SECONDS = 60  # that a client waits
PATH = "/invocations"
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Connection:
    """A connection that stays open, over a bare socket.

    http.client would use as much of the CPU per photo as the server does besides its model, and
    on the same cores.
    """

    def __init__(self, port: int) -> None:
        """Raises OSError when nothing listens."""
        self._socket = socket.create_connection(("127.0.0.1", port), ANSWER_SECONDS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, photo: bytes, path: str = PATH) -> None:
        """Send a photo and read the answer. Raises BenchmarkError unless it is 200, or OSError."""
        head = (
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            f"Content-Type: image/jpeg\r\nContent-Length: {len(photo)}\r\n\r\n"
        )
        self._socket.sendall(head.encode() + photo)
        answer = b""
        while (end := answer.find(b"\r\n\r\n")) < 0:
            answer += self._receive()
        length = LENGTH.search(answer[: end + 2])
        if not answer.startswith(b"HTTP/1.1 200") or not length:
            raise BenchmarkError(f"{path} answered {answer[:300]!r}")
        while len(answer) < end + 4 + int(length[1]):
            answer += self._receive()

    def _receive(self) -> bytes:
        received = self._socket.recv(65536)
        if not received:
            raise BenchmarkError("the server closed the connection")
        return received

    def close(self) -> None:
        self._socket.close()


def load(
    port: int, photos: Sequence[bytes], clients: int, warm_up: float, seconds: float
) -> Measured:
    """Send photos from `clients` at once for `warm_up` seconds, then for `seconds` that count.

    An answer counts when it arrives in these seconds; p50 and p99 are of the time it took.
    """
    begun = time.perf_counter()
    counts_from, counts_to = begun + warm_up, begun + warm_up + seconds
    found: list[tuple[float, float]] = []  # when an answer came, how long it took
    failures: list[Exception] = []

    def client(number: int) -> None:
        try:
            with closing(Connection(port)) as connection:
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
    """The latency that half of the photos keep to, and the one that 99 of 100 do."""
    p50, p99 = np.percentile(milliseconds, [50, 99]).tolist()
    return {"p50 ms": p50, "p99 ms": p99}
