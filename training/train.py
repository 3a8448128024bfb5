"""Train a model that counts: backbone features once, then a new head.

    python -m training.train --data DATASET --weights efficientnet_lite0.pth \
        --arch efficientnet_lite0 --output out

The same command runs on a laptop and on a spot machine. SIGTERM takes a snapshot and leaves
with exit code 75; the same command again goes on from there, to the same weights.
"""

import argparse
import json
import signal
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from training.checkpoint import Snapshot, load_snapshot, save_snapshot
from training.data import Dataset, DatasetError, in_validation, open_dataset
from training.export import export_model
from training.features import Features, StoppedError, compute_features, features_key
from training.metrics import evaluate
from training.model import Counter, Head, WeightsError, load_backbone
from training.report import plot_loss
from training.settings import INTERRUPTED, Settings, parse_arguments


@dataclass(frozen=True, kw_only=True)
class TensorSide:
    """Features, float32 [photos, views, features], and classes, int64 [photos]."""

    views: Tensor
    classes: Tensor


class StopRequest:
    """Becomes true with the first SIGTERM."""

    def __init__(self) -> None:
        self.seen = False
        signal.signal(signal.SIGTERM, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.seen = True

    def __call__(self) -> bool:
        return self.seen


def train(args: argparse.Namespace) -> None:
    """The whole run: features, head, evaluation, model folder. Raises StoppedError on SIGTERM."""
    stop = StopRequest()
    settings = Settings(**{name: getattr(args, name) for name in Settings.__dataclass_fields__})
    torch.set_num_threads(settings.threads)
    dataset = open_dataset(args.data)
    backbone = load_backbone(settings.arch, args.weights)
    checkpoints: Path = args.checkpoint_dir or args.output / "checkpoints"
    cache = checkpoints / f"features-{features_key(dataset, settings.arch, args.weights)}"
    train_features, test_features = (
        compute_features(dataset, side, backbone, cache, threads=settings.threads, should_stop=stop)
        for side in ("train", "test")
    )
    fit, validation = _split_validation(train_features, dataset, settings.validation_fraction)
    args.output.mkdir(parents=True, exist_ok=True)
    head = fit_head(
        fit,
        validation,
        classes=len(dataset.counts),
        settings=settings,
        checkpoints=checkpoints,
        metrics_file=args.output / "metrics.jsonl",
        snapshot_seconds=args.snapshot_seconds,
        should_stop=stop,
    )
    metrics = _test_metrics(head, train_features, test_features, dataset)
    plot_loss(args.output / "metrics.jsonl", args.output / "loss.png")
    export_model(
        Counter(backbone, head),
        args.output / "model",
        dataset=dataset,
        metrics=metrics,
        run_id=args.run_id,
        settings=asdict(settings),
    )
    (args.output / "metrics.json").write_text(json.dumps(metrics, indent=1))
    accuracy = metrics["test"]["accuracy"]["value"]
    print(f"test accuracy {accuracy:.1%} on {metrics['test']['photos']} photos", file=sys.stderr)


def fit_head(
    fit: TensorSide,
    validation: TensorSide,
    *,
    classes: int,
    settings: Settings,
    checkpoints: Path,
    metrics_file: Path,
    snapshot_seconds: float,
    should_stop: StopRequest,
) -> Head:
    """Train the head, from the newest snapshot if there is one. Raises StoppedError on request."""
    torch.manual_seed(settings.seed)
    head = Head(fit.views.shape[2], classes, settings.hidden, settings.dropout)
    head.standardise(fit.views.flatten(0, 1))
    optimizer = torch.optim.AdamW(
        head.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    steps = settings.epochs * -(-len(fit.classes) // settings.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, total_steps=steps
    )
    snapshot = load_snapshot(checkpoints, asdict(settings))
    history: list[dict[str, Any]] = []
    first = 0
    if snapshot:
        head.load_state_dict(snapshot["head"])
        optimizer.load_state_dict(snapshot["optimizer"])
        schedule.load_state_dict(snapshot["schedule"])
        history, first = snapshot["history"], snapshot["epoch"]
        print(f"going on after epoch {first}", file=sys.stderr)
    metrics_file.write_text("".join(json.dumps(line) + "\n" for line in history))

    saved = time.monotonic()
    with tqdm(total=settings.epochs, initial=first, desc="head", unit="epoch") as progress:
        for epoch in range(first, settings.epochs):
            started = time.monotonic()
            train_loss = _train_epoch(head, optimizer, schedule, fit, epoch, settings)
            line = {"epoch": epoch + 1, "train_loss": train_loss, **_validate(head, validation)}
            line["seconds"] = round(time.monotonic() - started, 3)
            history.append(line)
            with metrics_file.open("a") as stream:
                stream.write(json.dumps(line) + "\n")
            progress.set_postfix(loss=f"{train_loss:.3f}", accuracy=line["validation_accuracy"])
            progress.update()
            stopping = should_stop()
            if stopping or time.monotonic() - saved >= snapshot_seconds:
                state = Snapshot(
                    settings=asdict(settings),
                    epoch=epoch + 1,
                    head=head.state_dict(),
                    optimizer=optimizer.state_dict(),
                    schedule=schedule.state_dict(),
                    history=history,
                )
                save_snapshot(checkpoints, state)
                saved = time.monotonic()
            if stopping:
                raise StoppedError
    return head


def _train_epoch(
    head: Head,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    fit: TensorSide,
    epoch: int,
    settings: Settings,
) -> float:
    """One pass in an order, with views and dropout, that follow from (seed, epoch) alone."""
    torch.manual_seed(settings.seed * 1_000_003 + epoch + 1)
    head.train()
    total = 0.0
    for rows in torch.randperm(len(fit.classes)).split(settings.batch_size):
        view = torch.randint(fit.views.shape[1], (len(rows),))
        loss = nn.functional.cross_entropy(head(fit.views[rows, view]), fit.classes[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        total += loss.item() * len(rows)
    return round(total / len(fit.classes), 6)


@torch.inference_mode()
def _validate(head: Head, side: TensorSide) -> dict[str, float]:
    head.eval()
    logits = head(side.views[:, 0])
    loss = nn.functional.cross_entropy(logits, side.classes).item()
    accuracy = (logits.argmax(1) == side.classes).float().mean().item()
    return {"validation_loss": round(loss, 6), "validation_accuracy": round(accuracy, 4)}


def _split_validation(
    features: Features, dataset: Dataset, fraction: float
) -> tuple[TensorSide, TensorSide]:
    """Training and validation, product groups kept together."""
    held_out = np.array([in_validation(group, fraction) for group in features.groups])
    for name, rows in (("validation", held_out), ("training", ~held_out)):
        if not rows.any():
            raise DatasetError(f"no photo is left for {name}: prepare more photos")
    return _tensors(features, dataset, ~held_out), _tensors(features, dataset, held_out)


def _tensors(features: Features, dataset: Dataset, rows: NDArray[np.bool_]) -> TensorSide:
    classes = np.searchsorted(np.array(dataset.counts), features.counts[rows])
    return TensorSide(
        views=torch.from_numpy(features.views[rows]).float(), classes=torch.from_numpy(classes)
    )


@torch.inference_mode()
def _test_metrics(head: Head, train: Features, test: Features, dataset: Dataset) -> dict[str, Any]:
    head.eval()
    probabilities = torch.softmax(head(torch.from_numpy(test.views[:, 0]).float()), dim=1)
    values, photos = np.unique(train.counts, return_counts=True)
    majority = int(values[photos.argmax()])
    return {
        "train": {"photos": len(train.counts)},
        "test": evaluate(probabilities.numpy(), test.counts, dataset.counts, majority),
    }


def main() -> None:
    args = parse_arguments(description=__doc__)
    try:
        train(args)
    except StoppedError:
        print("stopped: the same command goes on from here", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except (DatasetError, WeightsError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
