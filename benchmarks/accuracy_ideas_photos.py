"""Photos and batches of accuracy_ideas: pairs, and what is done to a photo beyond augmentation."""

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from benchmarks import accuracy
from serving.preprocess import to_pixels
from training.augment import augment, draw
from training.data import PhotoIndex
from training.inventory_check import wrong_records
from training.photos import map_ahead
from training.settings import RECIPES
from training.trainer import soft_targets

COUNTS = list(accuracy.COUNTS)
CLASSES = len(COUNTS)
SPREAD = float(RECIPES["finetune"]["label_spread"])  # of the targets, items


class Photos:
    """Decoded photos with what is known of them."""

    def __init__(self, photos: PhotoIndex, folder: Path) -> None:
        rows = map_ahead(lambda row: to_pixels(photos.jpeg(row), 224), range(len(photos)),
                         threads=2, ahead=64)  # fmt: skip
        self.pixels = torch.from_numpy(np.stack(list(rows)))  # uint8 [N, 224, 224, 3]
        self.index, self.ids = photos, photos.ids
        self.classes = torch.from_numpy(photos.counts - 1)
        self.known = torch.from_numpy(np.stack([known(folder, photo_id) for photo_id in self.ids]))

    def mates(self) -> dict[int, list[int]]:
        """Row → rows of the neighbouring ids of the same products with one item more or fewer."""
        rows = {photo_id: row for row, photo_id in enumerate(self.ids)}
        found: dict[int, list[int]] = {}
        for row in wrong_records(self.ids, self.index.groups, self.index.counts):
            digits = len(self.ids[row])
            near = (f"{int(self.ids[row]) + step:0{digits}}" for step in (-1, 1))
            found[row] = [
                rows[mate] for mate in near
                if mate in rows and self.index.groups[rows[mate]] == self.index.groups[row]
            ]  # fmt: skip
        return found


def known(folder: Path, photo_id: str) -> NDArray[np.float32]:
    """Logarithms of a bin's volume, weight and number of products; NaN where not recorded."""
    bin_data = json.loads((folder / "metadata" / f"{photo_id}.json").read_text())["BIN_FCSKU_DATA"]

    def total(*names: str) -> float:
        try:
            return float(
                sum(
                    item["quantity"] * math.prod(float(item[name]["value"]) for name in names)
                    for item in bin_data.values()
                )
            )
        except (KeyError, TypeError, ValueError):
            return math.nan

    amounts = [total("height", "width", "length"), total("weight"), float(len(bin_data))]
    return np.log(np.maximum(amounts, 1e-2)).astype(np.float32)


class Batches:
    """Augmented photos and targets, in an order of their own."""

    def __init__(self, photos: Photos, args: argparse.Namespace) -> None:
        self.photos, self.args = photos, args
        self.targets = soft_targets(photos.classes, COUNTS, SPREAD)
        self.mates = photos.mates() if args.pairs else {}
        self.random = np.random.default_rng(args.seed)
        self.steps = len(photos.ids) // args.batch_size

    def order(self) -> NDArray[np.int64]:
        """Each photo once; with pairs, a photo and its mate side by side."""
        shuffled = self.random.permutation(len(self.photos.ids))
        if not self.mates:
            return shuffled
        chosen: dict[int, None] = {}
        for row in shuffled.tolist():
            mates = [mate for mate in self.mates.get(row, []) if mate not in chosen]
            chosen.update(dict.fromkeys([row, *mates[:1]] if row not in chosen else []))
        return np.array(list(chosen))

    def epoch(self, epoch: int, size: int) -> Iterator[tuple[NDArray[np.int64], Tensor, Tensor]]:
        """Rows, pixels float32 [N, size, size, 3], targets [N, CLASSES]."""
        args, order = self.args, self.order()
        for rows in order[: self.steps * args.batch_size].reshape(self.steps, -1):
            drawn = draw([self.photos.ids[row] for row in rows], seed=args.seed, epoch=epoch)
            pixels = augment(self.photos.pixels[rows], drawn, size)
            if args.turned:
                pixels = self.turned(pixels)
            if args.restyle:
                pixels = self.restyled(pixels)
            if args.recolour:
                pixels = self.recoloured(pixels)
            targets = self.targets[rows]
            if args.stitch and self.random.random() < args.stitch:
                pixels, targets = self.stitched(rows, pixels, targets)
            if args.cutmix and self.random.random() < args.cutmix:
                pixels, targets = self.cut(pixels, targets)
            elif args.mixup:
                pixels, targets = self.blended(pixels, targets)
            yield rows, pixels, targets

    def turned(self, pixels: Tensor) -> Tensor:
        """By a random number of right angles each."""
        angles = torch.from_numpy(self.random.integers(4, size=len(pixels)))
        turned = pixels.clone()
        for angle in range(1, 4):
            turned[angles == angle] = pixels[angles == angle].rot90(angle, (1, 2))
        return turned

    def recoloured(self, pixels: Tensor) -> Tensor:
        """A share of the photos with the colours in another order, or grey: no product's own."""
        matrices = torch.eye(3).expand(len(pixels), 3, 3).clone()
        for matrix in matrices:
            if self.random.random() < self.args.recolour:
                matrix[:] = matrix[torch.from_numpy(self.random.permutation(3))]
            if self.random.random() < self.args.recolour / 2:
                matrix[:] = 1 / 3
        return torch.einsum("nhwc,ncd->nhwd", pixels, matrices)

    def restyled(self, pixels: Tensor) -> Tensor:
        """A share of the photos through a random 3 × 3 convolution (Xu et al. 2021), blended."""
        photos = len(pixels)
        kernels = self.random.normal(size=(photos * 3, 3, 3, 3)).astype(np.float32)
        flat = pixels.permute(0, 3, 1, 2).reshape(1, photos * 3, *pixels.shape[1:3])
        padded = functional.pad(flat, (1, 1, 1, 1), mode="reflect")
        styled = functional.conv2d(padded, torch.from_numpy(kernels), groups=photos)
        styled = styled.view(photos, 3, *pixels.shape[1:3]).permute(0, 2, 3, 1)
        spread, mean = torch.std_mean(styled, dim=(1, 2), keepdim=True)
        usual_spread, usual_mean = torch.std_mean(pixels, dim=(1, 2), keepdim=True)
        styled = (styled - mean) / spread * usual_spread + usual_mean
        chosen = self.random.random(photos) < self.args.restyle
        share = torch.from_numpy((self.random.random(photos) * chosen).astype(np.float32))
        return pixels.lerp(styled, share.view(-1, 1, 1, 1)).clamp(0, 255)

    def stitched(
        self, rows: NDArray[np.int64], pixels: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Two photos squeezed side by side show the sum of their counts, where there is such."""
        partner = self.random.permutation(len(rows))
        counts = self.photos.classes[rows] + 1
        total = counts + counts[partner]
        halves = functional.avg_pool2d(pixels.permute(0, 3, 1, 2), (1, 2)).permute(0, 2, 3, 1)
        both = torch.cat([halves, halves[partner]], dim=2)
        fits = (total <= CLASSES) & torch.from_numpy(self.random.random(len(rows)) < 0.7)
        of_sum = soft_targets(total.clamp(max=CLASSES) - 1, COUNTS, SPREAD)
        return (
            torch.where(fits.view(-1, 1, 1, 1), both, pixels),
            torch.where(fits.view(-1, 1), of_sum, targets),
        )

    def blended(self, pixels: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """MixUp, as the trainer's."""
        share = float(self.random.beta(self.args.mixup, self.args.mixup))
        partner = self.random.permutation(len(pixels))
        return pixels.lerp(pixels[partner], share), targets.lerp(targets[partner], share)

    def cut(self, pixels: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """CutMix (Yun et al. 2019): a strip of full height or width from another photo."""
        partner = self.random.permutation(len(pixels))
        share = float(self.random.beta(1, 1))
        wide = round(share * pixels.shape[1])
        mixed = pixels.clone()
        if self.random.random() < 0.5:
            mixed[:, :wide] = pixels[partner, :wide]
        else:
            mixed[:, :, :wide] = pixels[partner, :, :wide]
        return mixed, targets.lerp(targets[partner], wide / pixels.shape[1])
