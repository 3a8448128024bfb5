"""What a network is trained and measured on: batches, and where they come from."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn


class Batch(NamedTuple):
    """What the network takes, and the distribution over classes that it should answer."""

    inputs: Tensor  # [N, …]
    targets: Tensor  # float32 [N, classes], rows sum to 1
    total: int  # examples that all processes have in this step


class Source(Protocol):
    """Where training batches come from."""

    steps: int  # batches in an epoch

    def batches(self, epoch: int, first: int) -> Iterator[Batch]:
        """The batches of an epoch (from 0), beginning with number `first`.

        A function of the seed, `epoch` and the batch's number alone.
        """


class Examples(NamedTuple):
    """What to measure on: nothing random was done to it."""

    batches: Iterable[Tensor]  # inputs [N, …], as often as asked
    classes: Tensor  # int64 [photos]


def soft_targets(classes: Tensor, counts: list[int], spread: float) -> Tensor:
    """Distributions around the true counts, float32 [photos, classes], from int64 [photos].

    A Gaussian over `counts` with standard deviation `spread`, in items (Díaz and Marathe 2019):
    an answer that is one off is less wrong than one that is three off. 0 leaves the count alone.
    """
    if not spread:
        return nn.functional.one_hot(classes, len(counts)).float()
    items = torch.tensor(counts, dtype=torch.float32)
    distances = items[None, :] - items[classes][:, None]
    return torch.softmax(-(distances**2) / (2 * spread**2), dim=1)
