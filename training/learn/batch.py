"""Batches to train and evaluate on, and the interface of their sources."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn


class Inputs(NamedTuple):
    """Inputs of the network: photos, or their features, and the products of their records."""

    photos: Tensor  # [N, …]
    products: Tensor  # float32 [N, SLOTS, MEASURES], see products.py


class Batch(NamedTuple):
    """Inputs of the network, and the class distributions that it should predict."""

    inputs: Inputs
    targets: Tensor  # float32 [N, classes], rows sum to 1
    total: int  # examples in this step over all processes


class Source(Protocol):
    """A source of training batches."""

    steps: int  # batches in an epoch

    def batches(self, epoch: int, first: int) -> Iterator[Batch]:
        """Yield the batches of an epoch (from 0), starting with batch number `first`.

        A batch depends only on the seed, `epoch` and its number.
        """


class Examples(NamedTuple):
    """Examples to evaluate on, without augmentation."""

    batches: Iterable[Inputs]  # can be iterated repeatedly
    classes: Tensor  # int64 [photos]


def soft_targets(classes: Tensor, counts: list[int], sigma: float) -> Tensor:
    """Return target distributions, float32 [photos, classes], for `classes`, int64 [photos].

    Each is a Gaussian around the true count with standard deviation `sigma`, in items (Díaz and
    Marathe 2019), so that larger errors cost more. With `sigma=0` targets are one-hot.
    """
    if not sigma:
        return nn.functional.one_hot(classes, len(counts)).float()
    items = torch.tensor(counts, dtype=torch.float32)
    distances = items[None, :] - items[classes][:, None]
    return torch.softmax(-(distances**2) / (2 * sigma**2), dim=1)
