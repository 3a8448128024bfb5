"""Train a model that counts: backbone features once, then a new head.

    python -m training.train --data DATASET --weights efficientnet_lite0.pth \
        --arch efficientnet_lite0 --output out

The same command runs on a laptop and on a spot machine. SIGTERM takes a snapshot and leaves
with exit code 75; the same command again goes on from there, to the same weights. SIGUSR1 takes
a snapshot after the epoch and goes on.
"""

import argparse
import json
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from training.checkpoint import load_snapshot, save_snapshot
from training.data import Dataset, DatasetError, in_validation, open_dataset
from training.export import export_model
from training.features import Features, StoppedError, compute_features, features_key
from training.head import DivergedError, Examples, HeadTrainer
from training.metrics import evaluate
from training.model import Counter, Head, WeightsError, load_backbone
from training.report import plot_loss
from training.settings import INTERRUPTED, Settings, parse_arguments
from training.signals import Signals


def train(args: argparse.Namespace) -> None:
    """The whole run: features, head, evaluation, model folder. Raises StoppedError on SIGTERM."""
    signals = Signals(signal.SIGTERM, signal.SIGUSR1)
    settings = Settings(**{name: getattr(args, name) for name in Settings.__dataclass_fields__})
    torch.set_num_threads(settings.threads)
    dataset = open_dataset(args.data)
    backbone = load_backbone(settings.arch, args.weights)
    key = features_key(dataset, settings.arch, args.weights)
    checkpoints: Path = args.checkpoint_dir or args.output / "checkpoints"
    cache, snapshots = checkpoints / f"features-{key}", checkpoints / f"snapshots-{key}"
    features, test_features = (
        compute_features(
            dataset,
            side,
            backbone,
            cache,
            threads=settings.threads,
            should_stop=lambda: signals.seen(signal.SIGTERM),
        )
        for side in ("train", "test")
    )
    fit, validation = _split_validation(features, dataset, settings.validation_fraction)
    trainer = HeadTrainer(fit, classes=len(dataset.counts), settings=settings)
    snapshot = load_snapshot(snapshots, asdict(settings))
    if snapshot:
        trainer.restore(snapshot)
        print(f"going on after epoch {trainer.epoch}", file=sys.stderr)
    args.output.mkdir(parents=True, exist_ok=True)
    metrics_file = args.output / "metrics.jsonl"
    _train_head(trainer, validation, metrics_file, snapshots, args.snapshot_seconds, signals)

    head, epoch = trainer.best_head()
    print(f"the head of epoch {epoch} has the lowest validation loss", file=sys.stderr)
    metrics = _test_metrics(head, features, test_features, dataset)
    metrics["train"]["epoch"] = epoch
    plot_loss(metrics_file, args.output / "loss.png")
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


def _train_head(
    trainer: HeadTrainer,
    validation: Examples,
    metrics_file: Path,
    snapshots: Path,
    snapshot_seconds: float,
    signals: Signals,
) -> None:
    """All epochs that are left, with a line in `metrics_file` for each and snapshots in between.

    `metrics_file` reads as if the run had never been interrupted (its seconds aside).
    """
    epochs = trainer.settings.epochs
    metrics_file.write_text("".join(json.dumps(line) + "\n" for line in trainer.history))
    saved = time.monotonic()
    with tqdm(total=epochs, initial=trainer.epoch, desc="head", unit="epoch") as progress:
        while trainer.epoch < epochs:
            started = time.monotonic()
            train_loss = trainer.train_epoch()
            validation_loss, validation_accuracy = trainer.evaluate(validation)
            trainer.keep_if_best(validation_loss)
            line = {
                "epoch": trainer.epoch,
                "train_loss": round(train_loss, 6),
                "validation_loss": round(validation_loss, 6),
                "validation_accuracy": round(validation_accuracy, 4),
                "seconds": round(time.monotonic() - started, 3),
            }
            trainer.history.append(line)
            with metrics_file.open("a") as stream:
                stream.write(json.dumps(line) + "\n")
            accuracy = f"{validation_accuracy:.1%}"
            progress.set_postfix(refresh=False, loss=f"{train_loss:.3f}", accuracy=accuracy)
            progress.update()
            stopping = signals.seen(signal.SIGTERM)
            asked = stopping or signals.seen(signal.SIGUSR1)
            if asked or time.monotonic() - saved >= snapshot_seconds:
                signals.forget(signal.SIGUSR1)
                save_snapshot(snapshots, trainer.snapshot())
                saved = time.monotonic()
            if stopping:
                raise StoppedError


def _split_validation(
    features: Features, dataset: Dataset, fraction: float
) -> tuple[Examples, Examples]:
    """Training and validation, product groups kept together."""
    held_out = np.array([in_validation(group, fraction) for group in features.groups])
    for name, rows in (("validation", held_out), ("training", ~held_out)):
        if not rows.any():
            raise DatasetError(f"no photo is left for {name}: prepare more photos")
    return _tensors(features, dataset, ~held_out), _tensors(features, dataset, held_out)


def _tensors(features: Features, dataset: Dataset, rows: NDArray[np.bool_]) -> Examples:
    classes = np.searchsorted(np.array(dataset.counts), features.counts[rows])
    return Examples(
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
    except (DatasetError, WeightsError, DivergedError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
