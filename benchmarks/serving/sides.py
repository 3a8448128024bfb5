"""What is measured: our server, and the same work without a server."""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import numpy as np
import psutil

from benchmarks.measure import BenchmarkError, Measured
from benchmarks.serving.load import Connection, percentiles
from common.files import ROOT
from rehearsal.aws.ports import free_port
from rehearsal.aws.processes import Processes
from rehearsal.aws.waiting import wait_until
from serving.container.artifact import Precision, load_model
from serving.container.cores import available_cores
from serving.container.preprocess import to_pixels

LOOK_SECONDS = 0.02


@dataclass(frozen=True, kw_only=True)
class Server:
    """A server that has answered a photo."""

    process: psutil.Process
    port: int
    first_answer: float  # seconds since it was started

    def megabytes(self) -> float:
        """The proportional set size of the process and all its children."""
        processes = [self.process, *self.process.children(recursive=True)]
        return sum(float(each.memory_full_info().pss) for each in processes) / 1e6


@contextmanager
def running(model: Path, precision: Precision, photo: bytes, folder: Path) -> Iterator[Server]:
    """Start our server with `model`, and yield it once it has answered `photo`.

    Its log goes to `folder`. Raises rehearsal.aws.waiting.NotReadyError when it ends before.
    """
    port = free_port()

    def answers() -> bool:
        try:
            with closing(Connection(port)) as connection:
                connection.send(photo)
        except (OSError, BenchmarkError):
            return False
        return True

    with Processes(folder / "processes") as processes:
        begun = time.perf_counter()
        process = processes.start(
            [
                *(sys.executable, "-m", "serving.container.server", "--model", model),
                *("--port", str(port), "--precision", precision),
            ],
            environment=os.environ,
            log=folder / "server.log",
            folder=ROOT,
        )
        log = folder / "server.log"
        wait_until(answers, process, name="the server", log=log, look_seconds=LOOK_SECONDS)
        yield Server(process=process, port=port, first_answer=time.perf_counter() - begun)


def without_server(
    model: Path, precision: Precision, photos: Sequence[bytes], clients: int, seconds: float
) -> Measured:
    """Decode, resize and count from as many threads as clients, at most one per core: the most
    that a server can reach."""
    loaded = load_model(model, threads=1, precision=precision)
    threads = min(clients, available_cores())

    def work(first: int) -> list[float]:
        taken: list[float] = []
        for photo in cycle(photos[first::threads]):
            begun = time.perf_counter()
            loaded.probabilities(to_pixels(photo, loaded.size)[np.newaxis])
            ended = time.perf_counter()
            taken.append((ended - begun) * 1000)
            if ended >= deadline:
                break
        return taken

    begun = time.perf_counter()
    deadline = begun + seconds
    with ThreadPoolExecutor(threads) as pool:
        taken = [each for found in pool.map(work, range(threads)) for each in found]
    elapsed = time.perf_counter() - begun
    return Measured(photos=len(taken), seconds=elapsed, facts=percentiles(taken))
