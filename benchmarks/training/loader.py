"""The loader of photos alone, against processes that do nothing but decode."""

import time
from functools import partial

import torch

from benchmarks.training.decoding import available_cores, pin, run_processes
from benchmarks.training.measure import Comparison, Measured, Scale, Side, compare
from common.dataset import Entry, PhotoIndex
from training.learn.memory import keep_freed_memory
from training.learn.photos import PhotoBatches, StillPhotos

REFERENCE = "two pinned processes, bytes in memory"
COUNTED = (
    "From the first photo asked for to the last one there; {photos}. The loader reads "
    "files, decodes in threads and makes batches; the processes hold the bytes in memory and drop "
    "the pixels. Both on the same two cores."
)


NATIVE = "photos at native size, each a file, decoded and resized"
PACKED = "photos of the training size, in shards, decoded"


def compare_loader(
    title: str, photos: str, entries: list[Entry], scale: Scale, repeats: int
) -> Comparison:
    """`photos` says what the entries are."""
    loader = partial(run_loader, entries, scale)
    sides = [
        Side(name="our loader", run=partial(loader, augmented=False), goal=0.9),
        Side(name="our loader, photos augmented", run=partial(loader, augmented=True)),
        Side(name=REFERENCE, run=partial(run_processes, entries, scale)),
    ]
    counted = COUNTED.format(photos=photos)
    return compare(title, sides, repeats, counted=counted, reference=REFERENCE)


def run_loader(entries: list[Entry], scale: Scale, *, augmented: bool) -> Measured:
    keep_freed_memory()  # as training does
    cores = available_cores()
    pin(cores)
    torch.set_num_threads(len(cores))
    # One long epoch, as in a real data set: the end of an epoch has nothing to decode ahead.
    index = PhotoIndex(entries * scale.passes)
    device = torch.device("cpu")
    still = StillPhotos(
        index, size=scale.size, batch_size=scale.batch_size, threads=len(cores), device=device
    )
    moving = PhotoBatches(
        index,
        torch.zeros(len(index), 1),
        packed=scale.size,
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
