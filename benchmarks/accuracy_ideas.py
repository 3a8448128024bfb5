"""Ideas for a recipe that counts better, each behind a flag, judged on validation photos alone.

    python -m benchmarks.accuracy_ideas NAME [flags]      train, measure, add a row

What paid was taken over by training.train; what did not is kept here, so that its row in
benchmarks/accuracy.jsonl can be repeated. Photos, split and augmentation are those of training,
the data set is that of `benchmarks.accuracy prepare`. The answers are kept beside it.
"""

import argparse
import copy
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.accuracy import DATASET, ROWS, VALIDATION
from benchmarks.training_report import machine
from serving.preprocess import to_pixels
from training.augment import augment, draw
from training.calibration import fit_temperature, softmax
from training.data import PhotoIndex, open_dataset
from training.inventory_check import check_inventory, wrong_records
from training.memory import keep_freed_memory
from training.metrics import evaluate
from training.model import keep_depthwise_in_float32
from training.photos import map_ahead
from training.task import split_validation
from training.trainer import soft_targets

COUNTS = [1, 2, 3, 4, 5]
CLASSES = len(COUNTS)


class Network(nn.Module):
    """Pixels, float32 [N, size, size, 3] → logits, float32 [N, outputs]."""

    def __init__(self, args: argparse.Namespace, outputs: int) -> None:
        super().__init__()
        body: Any = timm.create_model(
            f"tf_{args.arch}", num_classes=0, drop_path_rate=args.drop_path
        )
        self.body = body
        state = torch.load(args.weights, weights_only=True)
        body.load_state_dict({k: v for k, v in state.items() if k in body.state_dict()})
        frozen = [body.conv_stem, body.bn1, *body.blocks[: args.freeze]]
        self._frozen: list[nn.Module] = frozen if args.freeze else []
        for module in self._frozen:
            module.requires_grad_(False)
        self.pool = args.pool
        width: int = body.num_features
        self.attention = nn.Conv2d(width, 4, 1) if args.pool == "attention" else None
        features: int = width * {"mean": 1, "spread": 2, "attention": 5}[args.pool]
        self.dropout = nn.Dropout(args.dropout)
        self.answer = nn.Linear(features, outputs)
        nn.init.normal_(self.answer.weight, std=0.01)
        nn.init.zeros_(self.answer.bias)

    def train(self, mode: bool = True) -> "Network":
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def forward(self, pixels: Tensor) -> Tensor:
        normalised = (pixels.permute(0, 3, 1, 2) - 127) / 128
        maps = self.body.forward_features(normalised).float().flatten(2)
        features = maps.mean(2)
        if self.pool == "spread":
            features = torch.cat([features, maps.std(2)], dim=1)
        if self.attention is not None:
            weights = self.attention(maps.unsqueeze(3)).flatten(2).softmax(2)
            features = torch.cat([features, (maps @ weights.mT).flatten(1)], dim=1)
        answers: Tensor = self.answer(self.dropout(features))
        return answers


def probabilities_of(logits: Tensor, targets: str) -> Tensor:
    """[N, outputs] → [N, CLASSES]; CORN's logits are of "more than k, if at least k"."""
    if targets != "corn":
        return logits[:, :CLASSES].softmax(1)
    more = logits[:, : CLASSES - 1].sigmoid().cumprod(1)
    at_least = torch.cat([torch.ones(len(more), 1), more, torch.zeros(len(more), 1)], dim=1)
    return at_least[:, :-1] - at_least[:, 1:]


def corn_loss(logits: Tensor, classes: Tensor) -> Tensor:
    """Shi, Cao and Raschka 2021: binary questions, each asked of those that reach it."""
    total, asked = torch.zeros(()), 0
    for k in range(CLASSES - 1):
        reached = classes >= k
        total = total + functional.binary_cross_entropy_with_logits(
            logits[reached, k], (classes[reached] > k).float(), reduction="sum"
        )
        asked += int(reached.sum())
    return total / asked


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
        self.targets = soft_targets(photos.classes, COUNTS, args.spread)
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
            pixels = augment(self.photos.pixels[rows], drawn * args.strength_of_draw, size)
            if args.upside_down:
                turned = torch.from_numpy(self.random.random(len(rows)) < 0.5)
                pixels[turned] = pixels[turned].flip(1)
            targets = self.targets[rows]
            if args.stitch and self.random.random() < args.stitch:
                pixels, targets = self.stitched(rows, pixels, targets)
            if args.mixup and self.random.random() >= args.cutmix:
                share = float(self.random.beta(args.mixup, args.mixup))
                partner = self.random.permutation(len(rows))
                pixels, targets = (
                    pixels.lerp(pixels[partner], share),
                    targets.lerp(targets[partner], share),
                )
            elif args.cutmix:
                pixels, targets = self.cut(pixels, targets)
            yield rows, pixels, targets

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
        of_sum = soft_targets(total.clamp(max=CLASSES) - 1, COUNTS, self.args.spread)
        return (
            torch.where(fits.view(-1, 1, 1, 1), both, pixels),
            torch.where(fits.view(-1, 1), of_sum, targets),
        )

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


def loss_of(
    logits: Tensor, targets: Tensor, rows: NDArray[np.int64], photos: Photos,
    args: argparse.Namespace,
) -> Tensor:  # fmt: skip
    """What a step lowers."""
    classes = photos.classes[rows]
    if args.targets == "corn":
        return corn_loss(logits, classes)
    loss = functional.cross_entropy(logits[:, :CLASSES], targets)
    items = torch.arange(CLASSES, dtype=torch.float32)
    expected = logits[:, :CLASSES].softmax(1) @ items
    if args.squared:
        loss = loss + args.squared * functional.mse_loss(expected, targets @ items)
    if args.pairs:
        groups = np.array(photos.index.groups)[rows]
        together = torch.from_numpy(groups[1:] == groups[:-1])
        if together.any():
            wrong = expected.diff() - (targets @ items).diff()
            loss = loss + args.pairs * wrong[together].square().mean()
    if args.known:
        truth = photos.known[rows]
        there = truth.isfinite()
        errors = (logits[:, CLASSES:] - truth.nan_to_num()).square()
        loss = loss + args.known * errors[there].mean()
    return loss


@torch.inference_mode()
def answers(network: Network, photos: Photos, size: int, *, smooth: bool) -> Tensor:
    """Logits of the photos and of their mirror images, float32 [2, N, outputs]."""
    network.eval()
    found = []
    for pixels in photos.pixels.split(64):
        resized = functional.interpolate(
            pixels.permute(0, 3, 1, 2).float(), (size, size), mode="bilinear", antialias=smooth
        ).permute(0, 2, 3, 1)
        found.append(torch.stack([network(resized), network(resized.flip(2))]))
    return torch.cat(found, dim=1)


def train(
    args: argparse.Namespace, photos: Photos, held_out: Photos
) -> tuple[list[dict[str, Any]], Tensor]:
    """What was measured after each epoch, and the logits of the best by loss."""
    torch.manual_seed(args.seed)
    outputs = CLASSES + (photos.known.shape[1] if args.known else 0)
    network = Network(args, outputs).to(memory_format=torch.channels_last)
    if args.init:
        network.load_state_dict(torch.load(args.init, weights_only=True))
    if args.precision == "bfloat16":
        keep_depthwise_in_float32(network)
    average = copy.deepcopy(network)
    parameters = [tensor for tensor in network.parameters() if tensor.requires_grad]
    depth = np.linspace(1, 0, len(parameters))
    groups = [
        {"params": [tensor], "lr": args.learning_rate * args.layer_decay ** float(at)}
        for tensor, at in zip(parameters, depth, strict=True)
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=args.weight_decay, fused=True)
    batches = Batches(photos, args)
    steps = args.epochs * batches.steps
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [group["lr"] for group in groups], total_steps=steps, pct_start=args.warmup
    )
    taken, best = 0, torch.zeros(0)
    lines: list[dict[str, Any]] = []
    started = time.monotonic()
    for epoch in range(args.epochs):
        network.train()
        size = args.size[epoch * len(args.size) // args.epochs]
        losses = []
        for rows, pixels, targets in batches.epoch(epoch, size):
            with torch.autocast("cpu", enabled=args.precision == "bfloat16"):
                logits = network(pixels)
            loss = loss_of(logits.float(), targets, rows, photos, args)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 5.0)
            optimizer.step()
            schedule.step()
            taken += 1
            follow(average, network, min(args.average, (1 + taken) / (10 + taken)))
            losses.append(loss.item())
        if epoch % 2 == 0 and epoch + 1 < args.epochs:
            continue
        logits = answers(average, held_out, args.size[-1], smooth=args.smooth).float()
        line = measured(logits, held_out, args.targets)
        line = {"epoch": epoch + 1, "train_loss": round(float(np.mean(losses)), 4), **line}
        line["minutes"] = round((time.monotonic() - started) / 60, 1)
        print(args.name, *(f"{name} {value}" for name, value in line.items()), flush=True)
        if not lines or line["loss"] < min(other["loss"] for other in lines):
            best = logits
        lines.append(line)
    if args.keep:
        torch.save(average.state_dict(), args.folder / "ideas" / f"{args.name}.pth")
    return lines, best


@torch.no_grad()
def follow(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Exponential moving average of weights and statistics."""
    pairs = zip(average.state_dict().values(), network.state_dict().values(), strict=True)
    floats = [(mean, new) for mean, new in pairs if new.is_floating_point()]
    torch._foreach_lerp_([mean for mean, _ in floats], [new for _, new in floats], 1 - decay)


def measured(logits: Tensor, photos: Photos, targets: str) -> dict[str, Any]:
    """Of both views together."""
    probabilities = (
        probabilities_of(logits.mean(0), targets)
        if targets != "corn"
        else probabilities_of(logits[0], targets)
    )
    truth = photos.classes
    expected = probabilities @ torch.arange(CLASSES, dtype=torch.float32)
    of_truth = probabilities.gather(1, truth[:, None]).clamp_min(1e-9)
    return {
        "exact": round((probabilities.argmax(1) == truth).float().mean().item(), 4),
        "rmse": round((expected - truth).square().mean().sqrt().item(), 4),
        "loss": round(-of_truth.log().mean().item(), 4),
    }


def row(
    args: argparse.Namespace, lines: list[dict[str, Any]], best: Tensor, held_out: Photos
) -> dict[str, Any]:
    """One line of accuracy.jsonl, of both views, calibrated, at the epoch with the best loss."""
    logits = best.mean(0)[:, :CLASSES].numpy()
    if args.targets == "corn":
        logits = probabilities_of(best.mean(0), "corn").clamp_min(1e-9).log().numpy()
    photos = held_out.index
    temperature = fit_temperature(logits, held_out.classes.numpy())
    probabilities = softmax(logits, temperature)
    judged = evaluate(probabilities, photos.counts, COUNTS, 3)
    inventory = check_inventory(
        probabilities, photos.counts, COUNTS, ids=photos.ids, groups=photos.groups
    )
    calibrated = -np.log(probabilities[np.arange(len(photos)), held_out.classes]).mean()
    best_line = min(lines, key=lambda line: line["loss"])
    return {
        "try": args.name,
        "flags": "accuracy_ideas " + " ".join(sys.argv[2:]),
        "seed": args.seed,
        "side": "validation",
        "photos": judged["photos"],
        "exact": judged["accuracy"],
        "within_one": judged["within_one"],
        "mae": judged["mae"],
        "rmse_of_expected": judged["rmse_of_expected"],
        "calibration_error": judged["calibration"]["expected_calibration_error"],
        "auroc": inventory.get("auroc"),
        "validation_loss": round(float(calibrated), 4),
        "epoch": best_line["epoch"],
        "temperature": temperature,
        "minutes": lines[-1]["minutes"],
        "machine": machine(os.cpu_count() or 1),
    }


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy_ideas",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flag = parser.add_argument
    flag("name", help="of the row")
    flag("--folder", type=Path, default=Path(".accuracy"), help="default: %(default)s")
    flag("--arch", default="efficientnet_lite0", help="efficientnet_lite0, 1 or 2")
    flag("--weights", type=Path, help="of the backbone (default: FOLDER/weights/ARCH.pth)")
    flag(
        "--init", type=Path, help="start from weights that --keep left, such as those of drawn bins"
    )
    flag("--size", type=int, nargs="+", default=[160], help="pixels a side; several: growing")
    flag("--epochs", type=int, default=10)
    flag("--batch-size", type=int, default=32)
    flag("--learning-rate", type=float, default=5e-4, help="peak")
    flag("--layer-decay", type=float, default=1.0, help="first layer's learning rate, relative")
    flag("--warmup", type=float, default=0.05, help="share of the steps")
    flag("--weight-decay", type=float, default=0.05)
    flag("--dropout", type=float, default=0.3)
    flag("--drop-path", type=float, default=0.0, help="stochastic depth (Huang et al. 2016)")
    flag("--average", type=float, default=0.998, help="decay of the averaged weights in a step")
    flag("--freeze", type=int, default=0, help="stem and this many stages stay as pretrained")
    flag("--pool", choices=("mean", "spread", "attention"), default="mean")
    flag("--targets", choices=("soft", "corn"), default="soft")
    flag("--spread", type=float, default=0.5, help="of the soft targets, items")
    flag("--squared", type=float, default=0.0, help="weight of the expected count's squared error")
    flag("--pairs", type=float, default=0.0, help="weight of the error of a pair's difference")
    flag("--known", type=float, default=0.0, help="weight of volume, weight, number of products")
    flag("--mixup", type=float, default=0.0, help="MixUp's alpha")
    flag("--cutmix", type=float, default=0.0, help="share of the batches that are cut, not mixed")
    flag("--stitch", type=float, default=0.0, help="share of the batches with summed pairs")
    flag("--upside-down", action="store_true", help="flips the other way as well")
    flag("--strength-of-draw", type=float, default=1.0, help="of the usual augmentation")
    flag("--smooth", action="store_true", help="measure on photos without aliasing")
    flag("--precision", choices=("float32", "bfloat16"), default="bfloat16")
    flag("--threads", type=int, default=os.cpu_count())
    flag("--seed", type=int, default=0)
    flag("--keep", action="store_true", help="leave weights as FOLDER/ideas/NAME.pth, and no row")
    args = parser.parse_args(arguments)
    args.weights = args.weights or args.folder / "weights" / f"{args.arch}.pth"
    return args


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    dataset = open_dataset(args.folder / "datasets" / DATASET)
    index = dataset.index("train")
    fit, held_out_rows = split_validation(index, float(VALIDATION))
    photos = Photos(index.subset(fit), args.folder)
    held_out = Photos(index.subset(held_out_rows), args.folder)
    (args.folder / "ideas").mkdir(exist_ok=True)
    lines, best = train(args, photos, held_out)
    np.save(args.folder / "ideas" / f"{args.name}.npy", best.numpy())
    if not args.keep:
        with ROWS.open("a") as stream:
            stream.write(json.dumps(row(args, lines, best, held_out)) + "\n")


if __name__ == "__main__":
    main()
