"""What a loader can reach at best: pinned processes that decode photos and do nothing else."""

import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier

from benchmarks.training.measure import Measured, Scale
from common.dataset import Entry, PhotoIndex
from serving.container.preprocess import to_pixels

CORES = 2
STARTING_SECONDS = 600  # for every process to be ready


def run_processes(entries: list[Entry], scale: Scale) -> Measured:
    cores = available_cores()
    context = get_context("spawn")
    barrier = context.Barrier(len(cores))
    with ProcessPoolExecutor(
        len(cores), mp_context=context, initializer=_share, initargs=(barrier,)
    ) as pool:
        shares = [
            # Each waits for the others, so that each process takes one.
            pool.submit(_decode_share, entries[number :: len(cores)], scale, core)
            for number, core in enumerate(cores)
        ]
        begun, ended, done = zip(*(share.result() for share in shares), strict=True)
    return Measured(photos=sum(done), seconds=max(ended) - min(begun))


def available_cores() -> list[int]:
    """Those that each side gets; plain numbers where a system does not tell."""
    if sys.platform == "linux":
        return sorted(os.sched_getaffinity(0))[:CORES]
    return list(range(CORES))


def pin(cores: Sequence[int]) -> None:
    """Keep this process on `cores`, where the system can."""
    if sys.platform == "linux":
        os.sched_setaffinity(0, cores)


_everyone_ready: Barrier


def _share(barrier: Barrier) -> None:
    global _everyone_ready
    _everyone_ready = barrier


def _decode_share(entries: list[Entry], scale: Scale, core: int) -> tuple[float, float, int]:
    """Decode a share of the photos; returns begin and end, seconds of one clock, and how many."""
    pin([core])
    photos = PhotoIndex(entries)
    contents = [photos.jpeg(row) for row in range(len(photos))]
    to_pixels(contents[0], scale.size)
    _everyone_ready.wait(STARTING_SECONDS)
    begun = time.perf_counter()
    for _ in range(scale.passes):
        for content in contents:
            to_pixels(content, scale.size)
    return begun, time.perf_counter(), len(contents) * scale.passes
