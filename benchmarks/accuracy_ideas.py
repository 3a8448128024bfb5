"""Ideas for a recipe that counts better, each behind a flag, judged on validation photos alone.

    python -m benchmarks.accuracy_ideas NAME [flags]      train, measure, add a row

What pays is taken over by training.train; what does not is kept here, so that its row in
benchmarks/accuracy.jsonl can be repeated. Photos, split and augmentation are those of training,
the data set is that of `benchmarks.accuracy prepare`. The answers are kept beside it.
"""

import argparse
import copy
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.accuracy import ROWS
from benchmarks.accuracy_answers import answers_of, judge, open_sides
from benchmarks.accuracy_ideas_photos import CLASSES, Batches, Photos
from benchmarks.training_report import machine
from training.data import DatasetError
from training.memory import keep_freed_memory
from training.model import keep_depthwise_in_float32
from training.settings import RECIPES

USUAL = RECIPES["finetune"]
DROPOUT, WARMUP = float(USUAL["dropout"]), float(USUAL["warmup"])
WEIGHT_DECAY, AVERAGE = float(USUAL["weight_decay"]), float(USUAL["average"])


class Network(nn.Module):
    """Pixels, float32 [N, size, size, 3] → logits, float32 [N, outputs]."""

    def __init__(self, args: argparse.Namespace, outputs: int) -> None:
        super().__init__()
        body: Any = timm.create_model(f"tf_{args.arch}", num_classes=0)
        self.body = body
        state = torch.load(args.weights, weights_only=True)
        body.load_state_dict({k: v for k, v in state.items() if k in body.state_dict()})
        frozen = [body.conv_stem, body.bn1, *body.blocks[: args.freeze]]
        self._frozen: list[nn.Module] = frozen if args.freeze else []
        for module in self._frozen:
            module.requires_grad_(False)
        self.dropout = nn.Dropout(DROPOUT)
        self.answer = nn.Linear(body.num_features, outputs)
        nn.init.normal_(self.answer.weight, std=0.01)
        nn.init.zeros_(self.answer.bias)

    def train(self, mode: bool = True) -> "Network":
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def forward(self, pixels: Tensor) -> Tensor:
        normalised = (pixels.permute(0, 3, 1, 2) - 127) / 128
        features = self.body.forward_features(normalised).float().mean((2, 3))
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
    """What was measured after each epoch, and the log-probabilities of the best by loss."""
    torch.manual_seed(args.seed)
    outputs = CLASSES + (photos.known.shape[1] if args.known else 0)
    network = Network(args, outputs).to(memory_format=torch.channels_last)
    average = copy.deepcopy(network)
    teachers = [teacher(args, name, outputs) for name in args.teachers]
    if args.precision == "bfloat16":
        keep_depthwise_in_float32(network)  # after the copy, which would call this one's layers
    parameters = [tensor for tensor in network.parameters() if tensor.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, args.learning_rate, weight_decay=WEIGHT_DECAY, fused=True
    )
    batches = Batches(photos, args)
    steps = args.epochs * batches.steps
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, args.learning_rate, total_steps=steps, pct_start=WARMUP
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
                if teachers:
                    targets = targets.lerp(taught(teachers, pixels), 0.5)
            loss = loss_of(logits.float(), targets, rows, photos, args)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 5.0)
            optimizer.step()
            schedule.step()
            taken += 1
            follow(average, network, min(AVERAGE, (1 + taken) / (10 + taken)))
            losses.append(loss.item())
        if epoch % 2 == 0 and epoch + 1 < args.epochs:
            continue
        logits = answers(average, held_out, args.size[-1], smooth=args.smooth).float().mean(0)
        probabilities = probabilities_of(logits, args.targets).clamp_min(1e-9)
        line = measured(probabilities.log(), held_out)
        line = {"epoch": epoch + 1, "train_loss": round(float(np.mean(losses)), 4), **line}
        line["minutes"] = round((time.monotonic() - started) / 60, 1)
        print(args.name, *(f"{name} {value}" for name, value in line.items()), flush=True)
        if not lines or line["loss"] < min(other["loss"] for other in lines):
            best = probabilities.log()
        lines.append(line)
    if args.keep:
        torch.save(average.state_dict(), kept_weights(args.folder, args.name))
    return lines, best


def kept_weights(folder: Path, name: str) -> Path:
    """What --keep leaves of a try."""
    return folder / "ideas" / f"{name}.pth"


def teacher(args: argparse.Namespace, name: str, outputs: int) -> Network:
    network = Network(args, outputs).to(memory_format=torch.channels_last)
    kept = torch.load(kept_weights(args.folder, name), weights_only=True)
    network.load_state_dict(kept)
    if args.precision == "bfloat16":
        keep_depthwise_in_float32(network)
    return network.eval()


@torch.no_grad()
def taught(teachers: list[Network], pixels: Tensor) -> Tensor:
    """What the teachers answer on average, probabilities (Hinton et al. 2015)."""
    answers = [network(pixels).float()[:, :CLASSES].softmax(1) for network in teachers]
    return torch.stack(answers).mean(0)


@torch.no_grad()
def follow(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Exponential moving average of weights and statistics."""
    pairs = zip(average.state_dict().values(), network.state_dict().values(), strict=True)
    floats = [(mean, new) for mean, new in pairs if new.is_floating_point()]
    torch._foreach_lerp_([mean for mean, _ in floats], [new for _, new in floats], 1 - decay)


def measured(answers: Tensor, photos: Photos) -> dict[str, Any]:
    """Of log-probabilities [N, CLASSES], before calibration."""
    probabilities, truth = answers.exp(), photos.classes
    expected = probabilities @ torch.arange(CLASSES, dtype=torch.float32)
    return {
        "exact": round((answers.argmax(1) == truth).float().mean().item(), 4),
        "rmse": round((expected - truth).square().mean().sqrt().item(), 4),
        "loss": round(functional.nll_loss(answers, truth).item(), 4),
    }


def row(
    args: argparse.Namespace, lines: list[dict[str, Any]], best: Tensor, held_out: Photos
) -> dict[str, Any]:
    """One line of accuracy.jsonl, of both views, calibrated, at the epoch with the best loss."""
    flags = sys.argv[1:]
    flags.remove(args.name)
    return {
        "try": args.name,
        "flags": "accuracy_ideas " + " ".join(flags),
        "seed": args.seed,
        "side": "validation",
        **judge(best.numpy(), held_out.index),
        "epoch": min(lines, key=lambda line: line["loss"])["epoch"],
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
    flag("--size", type=int, nargs="+", default=[160], help="pixels a side; several: growing")
    flag("--epochs", type=int, default=10)
    flag("--batch-size", type=int, default=32)
    flag("--learning-rate", type=float, default=5e-4, help="peak")
    flag("--freeze", type=int, default=0, help="stem and this many stages stay as pretrained")
    flag("--targets", choices=("soft", "corn"), default="soft")
    flag("--squared", type=float, default=0.0, help="weight of the expected count's squared error")
    flag("--pairs", type=float, default=0.0, help="weight of the error of a pair's difference")
    flag("--teachers", nargs="+", default=[], metavar="NAME",
         help="learn from the answers of networks that --keep left as much as from the records; "
         "they are built as this one is")  # fmt: skip
    flag("--known", type=float, default=0.0, help="weight of volume, weight, number of products")
    flag("--mixup", type=float, default=0.0, help="MixUp's alpha")
    flag("--cutmix", type=float, default=0.0, help="share of the batches that are cut, not mixed")
    flag("--stitch", type=float, default=0.0, help="share of the batches with summed pairs")
    flag("--turned", action="store_true", help="by right angles as well")
    flag("--recolour", type=float, default=0.0, help="share of photos whose colours change places")
    flag("--restyle", type=float, default=0.0, help="share of photos with another texture")
    flag("--smooth", action="store_true", help="measure on photos without aliasing")
    flag("--precision", choices=("float32", "bfloat16"), default="bfloat16")
    flag("--threads", type=int, default=os.cpu_count())
    flag("--seed", type=int, default=0)
    flag(
        "--keep", action="store_true", help="leave the weights, last ones, in FOLDER/ideas/NAME.pth"
    )
    flag("--no-row", action="store_true", help="it is only a teacher, or looked at again")
    args = parser.parse_args(arguments)
    mixing = args.mixup or args.cutmix or args.stitch
    if args.targets == "corn" and (mixing or args.squared or args.pairs or args.known):
        parser.error("--targets corn goes with no --mixup, --cutmix, --stitch, nor another loss")
    if args.known and mixing:
        parser.error("--known goes with no --mixup, --cutmix or --stitch: it knows whole photos")
    for name in args.teachers:
        if not kept_weights(args.folder, name).exists():
            parser.error(f"--teachers {name}: run that try with --keep first")
    args.weights = args.weights or args.folder / "weights" / f"{args.arch}.pth"
    return args


def try_idea(args: argparse.Namespace) -> None:
    """Train and measure; leaves answers, a row, and weights if they are to be kept."""
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    photos, held_out = (Photos(side, args.folder) for side in open_sides(args.folder))
    (args.folder / "ideas").mkdir(exist_ok=True)
    lines, best = train(args, photos, held_out)
    np.save(answers_of(args.folder, args.name), best.numpy())
    if not args.no_row:
        with ROWS.open("a") as stream:
            stream.write(json.dumps(row(args, lines, best, held_out)) + "\n")


def main() -> None:
    args = parse_arguments()
    try:
        try_idea(args)
    except (DatasetError, FileNotFoundError) as error:
        sys.exit(f"error: {error}; first: python -m benchmarks.accuracy prepare")


if __name__ == "__main__":
    main()
