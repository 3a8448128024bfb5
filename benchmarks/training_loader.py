"""The loader of photos alone, against processes that do nothing but decode."""

import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path

import torch

from benchmarks.training_measure import Comparison, Measured, Scale, Side, compare
from benchmarks.training_photos import native_entries
from serving.preprocess import to_pixels
from training.data import PhotoIndex
from training.photos import PhotoBatches, StillPhotos

CORES = 2
STARTING_SECONDS = 600  # for every process to be ready
REFERENCE = "two pinned processes, bytes in memory"
COUNTED = (
    "From the first photo asked for to the last one there; photos at native size, decoded and "
    "resized. The loader reads files, decodes in threads and makes batches; the processes hold "
    "the bytes in memory and drop the pixels. Both on the same two cores."
)


def compare_loader(photos: Path, scale: Scale, repeats: int) -> Comparison:
    """(c): `photos` is a prepared folder (training_photos)."""
    loader = partial(run_loader, photos, scale)
    sides = [
        Side(name="our loader", run=partial(loader, augmented=False), goal=0.9),
        Side(name="our loader, photos augmented", run=partial(loader, augmented=True)),
        Side(name=REFERENCE, run=partial(run_processes, photos, scale)),
    ]
    return compare("loader", sides, repeats, counted=COUNTED, reference=REFERENCE)


def run_loader(photos: Path, scale: Scale, *, augmented: bool) -> Measured:
    cores = pin(available_cores())
    torch.set_num_threads(len(cores))
    # One long epoch, as in a real data set: the end of an epoch has nothing to decode ahead.
    index = PhotoIndex(native_entries(photos) * scale.passes)
    device = torch.device("cpu")
    still = StillPhotos(
        index, size=scale.size, batch_size=scale.batch_size, threads=len(cores), device=device
    )
    moving = PhotoBatches(
        index,
        torch.zeros(len(index), 1),
        size=scale.size,
        batch_size=scale.batch_size,
        seed=0,
        threads=len(cores),
        device=device,
    )
    next(moving.batches(1, 0))  # what is done once is done
    begun = time.perf_counter()
    if augmented:
        done = sum(len(batch.inputs) for batch in moving.batches(0, 0))
    else:
        done = sum(len(pixels) for pixels in still)
    return Measured(photos=done, seconds=time.perf_counter() - begun)


def run_processes(photos: Path, scale: Scale) -> Measured:
    cores = available_cores()
    context = get_context("spawn")
    barrier = context.Barrier(len(cores))
    with ProcessPoolExecutor(
        len(cores), mp_context=context, initializer=_share, initargs=(barrier,)
    ) as pool:
        shares = [
            # Each waits for the others, so that each process takes one.
            pool.submit(_decode_share, photos, scale, core, slice(number, None, len(cores)))
            for number, core in enumerate(cores)
        ]
        begun, ended, done = zip(*(share.result() for share in shares), strict=True)
    return Measured(photos=sum(done), seconds=max(ended) - min(begun))


def available_cores() -> list[int]:
    """Those that both sides get; empty numbers where a system does not tell its cores."""
    if sys.platform == "linux":
        return sorted(os.sched_getaffinity(0))[:CORES]
    return list(range(CORES))


def pin(cores: Sequence[int]) -> Sequence[int]:
    """Keep this process on `cores`, where the system can; returns them."""
    if sys.platform == "linux":
        os.sched_setaffinity(0, cores)
    return cores


_everyone_ready: Barrier


def _share(barrier: Barrier) -> None:
    global _everyone_ready
    _everyone_ready = barrier


def _decode_share(photos: Path, scale: Scale, core: int, share: slice) -> tuple[float, float, int]:
    """Decode a share of the photos; returns begin and end, seconds of one clock, and how many."""
    pin([core])
    entries = native_entries(photos)[share]
    contents = [entry.file.read_bytes() for entry in entries]
    to_pixels(contents[0], scale.size)
    _everyone_ready.wait(STARTING_SECONDS)
    begun = time.perf_counter()
    for _ in range(scale.passes):
        for content in contents:
            to_pixels(content, scale.size)
    return begun, time.perf_counter(), len(contents) * scale.passes
