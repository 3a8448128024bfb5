"""Batches of cached features, to train a new head on a frozen backbone."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from training.learn.batch import Batch, Inputs
from training.learn.distributed import ALONE, World, shard


class FeatureBatches:
    """A batch.Source of cached features: of each photo, one view at random per epoch."""

    def __init__(
        self,
        views: Tensor,
        products: Tensor,
        targets: Tensor,
        *,
        batch_size: int,
        seed: int,
        world: World = ALONE,
    ) -> None:
        """Take `views`, float16 [photos, views, features], and the `products` of their records.

        `targets` are float32 [photos, classes]. `batch_size` is the number of photos per process.
        """
        self._views, self._products, self._targets = views, products, targets
        self._batch_size, self._seed, self._world = batch_size * world.size, seed, world
        self.steps = -(-len(targets) // self._batch_size)

    def batches(self, epoch: int, first: int) -> Iterator[Batch]:
        """Yield the batches of an epoch, starting with number `first`."""
        generator = np.random.default_rng([self._seed, epoch])
        photos, views = self._views.shape[:2]
        order = torch.from_numpy(generator.permutation(photos))
        view = torch.from_numpy(generator.integers(views, size=photos))
        for rows in order.split(self._batch_size)[first:]:
            mine = shard(rows, self._world)
            inputs = Inputs(self._views[mine, view[mine]].float(), self._products[mine])
            yield Batch(inputs, self._targets[mine], len(rows))
