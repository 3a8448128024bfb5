"""Train a model that counts: a new head on a pretrained backbone, or every layer.

    python -m training.train --data DATASET --weights efficientnet_lite0.pth \\
        --arch efficientnet_lite0 --output out [--mode finetune]

The same command runs on a laptop and on a spot machine. SIGTERM, or Ctrl-C, takes a snapshot and
leaves with exit code 75; the same command again goes on from there, to the same weights. SIGUSR1
takes a snapshot and goes on.
"""

import argparse
import json
import os
import signal
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.dataset import Dataset, DatasetError, open_dataset
from common.signals import Signals, StoppedError
from serving.container.decision import decide
from training.evaluate.calibration import fit_temperature, softmax
from training.evaluate.inventory_check import check_inventory
from training.evaluate.metrics import evaluate, worst_mistakes
from training.evaluate.report import Mistake, plot_loss, write_report
from training.export.model_folder import ExportError, export_model
from training.learn.checkpoint import (
    disk_error_line,
    load_snapshot,
    snapshots_folder,
    write_tensors,
)
from training.learn.device import choose_device
from training.learn.distributed import World, join
from training.learn.features import PrecisionError, features_key
from training.learn.loop import Saving
from training.learn.loop import train as train_steps
from training.learn.memory import give_freed_memory_back, keep_freed_memory
from training.learn.model import Counter, WeightsError
from training.learn.precision import settle_precision
from training.learn.task import Measured, Task, mean_logits, prepare_finetune, prepare_head
from training.learn.trainer import DivergedError, Trainer
from training.settings import INTERRUPTED, Settings, parse_arguments

MISTAKES = 24  # shown in the report
STARTED = time.monotonic()  # what the machine cost before, its boot, is in no line of ours
GOES_ON = "stopped: the same command goes on from here"


def train(args: argparse.Namespace) -> None:
    """The whole run: data, training, evaluation, model folder. Raises StoppedError on SIGTERM."""
    signals = Signals(signal.SIGTERM, signal.SIGUSR1)
    signal.signal(signal.SIGINT, lambda *_: signal.raise_signal(signal.SIGTERM))
    world = join()
    dataset = open_dataset(args.data)
    args.size = args.size or dataset.size
    settings = Settings(**{name: getattr(args, name) for name in Settings.__dataclass_fields__})
    keep_freed_memory()
    torch.set_num_threads(args.threads)
    torch.manual_seed(settings.seed)
    device = choose_device(world.local_rank)
    checkpoints: Path = args.checkpoint_dir or args.output / "checkpoints"
    precision = ""
    if world.first:
        precision = settle_precision(settings.precision, settings.mode, device, checkpoints)
    settings = replace(settings, precision=world.broadcast(precision))
    prepare = prepare_head if settings.mode == "head" else prepare_finetune
    task = prepare(dataset, settings, args, checkpoints, device, signals, world)

    trainer = Trainer(
        task.trained,
        task.source,
        settings,
        device,
        world,
        should_stop=lambda: signals.seen(signal.SIGTERM),
    )
    inputs = features_key(
        dataset, settings.arch, args.weights, settings.size, settings.backbone_precision
    )
    snapshots = snapshots_folder(checkpoints, asdict(settings), inputs=inputs, processes=world.size)
    last = load_snapshot(snapshots, asdict(settings)) if world.first else None
    if snapshot := world.broadcast(last):
        trainer.restore(snapshot)
        _say(world, f"going on after epoch {trainer.epoch}, step {trainer.step}")
    args.output.mkdir(parents=True, exist_ok=True)
    train_steps(
        trainer,
        task.validation.examples,
        args.output,
        Saving(snapshots, args.snapshot_seconds, signals),
        dollars_an_hour=args.dollars_an_hour,
        started=STARTED,
        profile=args.profile,
    )
    epoch = trainer.load_best()
    _say(world, f"the weights after epoch {epoch} have the lowest validation loss")
    metrics, mistakes = judge(trainer, task, dataset, epoch)
    if world.first:
        # All that training left is on disk: what comes now is done again in a minute.
        signals.exit_at_once(signal.SIGTERM, code=INTERRUPTED, message=GOES_ON)
        give_freed_memory_back()  # two vCPUs may come with 4 GiB, and the exports need them
        write(args, trainer, task, dataset, metrics, mistakes)
    world.leave()


def judge(
    trainer: Trainer, task: Task, dataset: Dataset, epoch: float
) -> tuple[dict[str, Any], list[Mistake]]:
    """What metrics.json holds of the weights after `epoch` epochs, and the worst mistakes."""
    logits = mean_logits(trainer, task.validation)
    temperature = fit_temperature(logits, task.validation.classes.numpy())
    metrics: dict[str, Any] = {
        "train": {"photos": len(task.photos), "epoch": epoch},
        "temperature": temperature,
    }
    mistakes: list[Mistake] = []
    for name, measured in (("validation", task.validation), ("test", task.test)):
        if measured:
            metrics[name], mistakes = measure(trainer, measured, dataset, task, temperature)
            accuracy, photos = metrics[name]["accuracy"]["value"], metrics[name]["photos"]
            _say(trainer.world, f"{name} accuracy {accuracy:.1%} on {photos} photos")
    return metrics, mistakes


def write(
    args: argparse.Namespace,
    trainer: Trainer,
    task: Task,
    dataset: Dataset,
    metrics: dict[str, Any],
    mistakes: list[Mistake],
) -> None:
    """Pictures, report, weights and the model folder; metrics.json last."""
    settings = asdict(trainer.settings)
    plot_loss(args.output / "metrics.jsonl", args.output / "loss.png")
    write_report(
        args.output / "report.html",
        title=f"Run {args.run_id}",
        command=command(args.threads, trainer.world),
        settings=settings,
        metrics=metrics,
        history=trainer.history,
        mistakes=mistakes,
    )
    write_tensors(args.output / "weights.pth", task.network.state_dict())
    model = args.model_dir or args.output / "model"
    export_model(
        Counter(
            task.network.cpu(), metrics["temperature"], mirror=trainer.settings.mirror == "yes"
        ),
        model,
        dataset=dataset,
        calibration=task.fitted,
        validation=task.validation.photos,
        metrics=metrics,
        run_id=args.run_id,
        settings=settings,
        int8=args.int8 == "auto",
    )
    (args.output / "metrics.json").write_text(json.dumps(metrics, indent=1))
    print(f"{args.output / 'report.html'} tells all; the model is in {model}", file=sys.stderr)


def command(threads: int, world: World) -> list[str]:
    """What repeats this run, on a machine of the same type to the same weights."""
    start = ["python"]
    if world.size > 1:
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        start = ["torchrun", "--nnodes", str(world.size // here), "--nproc-per-node", str(here)]
    return [*start, "-m", "training.train", *sys.argv[1:], "--threads", str(threads)]


def measure(
    trainer: Trainer, measured: Measured, dataset: Dataset, task: Task, temperature: float
) -> tuple[dict[str, Any], list[Mistake]]:
    """Metrics of the best weights and their worst mistakes."""
    probabilities = softmax(mean_logits(trainer, measured), temperature)
    photos, counts = measured.photos, dataset.counts
    values, times = np.unique(task.photos.counts, return_counts=True)
    majority, decision = int(values[times.argmax()]), trainer.settings.decision
    metrics = evaluate(probabilities, photos.counts, counts, majority, decision)
    metrics["inventory"] = check_inventory(
        probabilities, photos.counts, counts, ids=photos.ids, groups=photos.groups
    )
    answers = decide(probabilities, counts, decision)
    mistakes = [
        Mistake(
            id=photos.ids[row],
            jpeg=photos.jpeg(row),
            count=int(photos.counts[row]),
            predicted=int(answers[row]),
            probability=float(probabilities[row, counts.index(int(answers[row]))]),
        )
        for row in worst_mistakes(probabilities, photos.counts, counts, decision, MISTAKES)
    ]
    return metrics, mistakes


def _say(world: World, message: str) -> None:
    if world.first:
        print(message, file=sys.stderr)


def main() -> None:
    args = parse_arguments(description=__doc__)
    try:
        train(args)
    except StoppedError:
        print(GOES_ON, file=sys.stderr)
        sys.exit(INTERRUPTED)
    except (DatasetError, WeightsError, PrecisionError, DivergedError, ExportError) as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(disk_error_line(error))


if __name__ == "__main__":
    main()
