"""Batches of pixels: photos are decoded ahead in threads, and augmented for training."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.dataset import PhotoIndex
from serving.container.preprocess import to_pixels
from training.learn.augment import augment, draw
from training.learn.batch import Batch, Inputs
from training.learn.distributed import ALONE, World, shard
from training.learn.products import product_slots

AHEAD = 4  # batches that are decoded while the network works on another

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], *, threads: int, ahead: int
) -> Iterator[Result]:
    """Apply `function` to each item in threads, and yield the results in order.

    At most `ahead` results are computed before they are needed. Executor.map would take all items,
    and memory for all results, at once.
    """
    remaining = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        futures: deque[Future[Result]] = deque(
            pool.submit(function, item) for item in islice(remaining, ahead)
        )
        try:
            while futures:
                result = futures.popleft().result()
                futures.extend(pool.submit(function, item) for item in islice(remaining, 1))
                yield result
        finally:
            for future in futures:
                future.cancel()


class PhotoBatches:
    """A batch.Source of augmented photos, to train every layer.

    The inputs of a batch are pixels, float32 [N, size, size, 3], and products, on `device`.
    """

    def __init__(
        self,
        photos: PhotoIndex,
        targets: Tensor,
        *,
        packed: int,
        size: int,
        batch_size: int,
        seed: int,
        threads: int,
        device: torch.device,
        world: World = ALONE,
    ) -> None:
        """Take `photos` and their `targets`, float32 [photos, classes].

        Photos are decoded to `packed` pixels a side. `batch_size` is the number of photos per
        process.
        """
        self._photos, self._targets, self._world = photos, targets, world
        self._products = product_slots(photos)
        self._batch_size, self._seed = batch_size * world.size, seed
        self._packed, self._size = packed, size
        self._threads, self._device = threads, device
        # A short last batch would harm BatchNorm; each epoch leaves out other photos.
        self.steps = len(photos) // self._batch_size

    def batches(self, epoch: int, first: int) -> Iterator[Batch]:
        """Yield the batches of an epoch, starting with number `first`."""
        order = np.random.default_rng([self._seed, epoch]).permutation(len(self._photos))
        batches = torch.from_numpy(order[: self.steps * self._batch_size]).split(self._batch_size)
        rows = [shard(batch, self._world).numpy() for batch in batches[first:]]
        decoded = map_ahead(self._decode, rows, threads=self._threads, ahead=AHEAD)
        for chosen, pixels in zip(rows, decoded, strict=True):
            drawn = draw([self._photos.ids[row] for row in chosen], seed=self._seed, epoch=epoch)
            augmented = augment(self._to_device(pixels), self._to_device(drawn), self._size)
            of_batch = torch.from_numpy(chosen)
            inputs = Inputs(augmented, self._to_device(self._products[of_batch]))
            yield Batch(inputs, self._to_device(self._targets[of_batch]), self._batch_size)

    def _decode(self, rows: NDArray[np.int64]) -> Tensor:
        return decode(self._photos, rows.tolist(), self._packed, pinned=_on_gpu(self._device))

    def _to_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._device, non_blocking=True)


class EvalPhotos:
    """Photos without augmentation in batches, optionally all mirrored; can be iterated repeatedly.

    Yields pixels, uint8 [N, size, size, 3], and products, on `device`.
    """

    def __init__(
        self,
        photos: PhotoIndex,
        *,
        size: int,
        batch_size: int,
        threads: int,
        device: torch.device,
        mirrored: bool = False,
    ) -> None:
        self._photos, self._size, self._batch_size = photos, size, batch_size
        self._threads, self._device, self._mirrored = threads, device, mirrored
        self._products = product_slots(photos).to(device)

    def __iter__(self) -> Iterator[Inputs]:
        total = len(self._photos)
        rows = [
            range(start, min(start + self._batch_size, total))
            for start in range(0, total, self._batch_size)
        ]
        decoded = map_ahead(self._decode, rows, threads=self._threads, ahead=AHEAD)
        for of_batch, photos in zip(rows, decoded, strict=True):
            pixels = photos.to(self._device, non_blocking=True)
            pixels = pixels.flip(2) if self._mirrored else pixels
            yield Inputs(pixels, self._products[of_batch.start : of_batch.stop])

    def _decode(self, rows: range) -> Tensor:
        return decode(self._photos, rows, self._size, pinned=_on_gpu(self._device))


def decode(photos: PhotoIndex, rows: Iterable[int], size: int, *, pinned: bool = False) -> Tensor:
    """Decode the photos at `rows` as serving does, uint8 [N, size, size, 3]."""
    pixels = torch.from_numpy(np.stack([to_pixels(photos.jpeg(row), size) for row in rows]))
    return pixels.pin_memory() if pinned else pixels


def _on_gpu(device: torch.device) -> bool:
    return device.type == "cuda"
