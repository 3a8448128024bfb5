"""Train a model that counts items: a new head on a pretrained backbone, or every layer.

For example, to train a new head, or every layer with `--mode finetune`:

    python -m training.train --data DATASET --output out \\
        --weights efficientnet_lite0.pth --arch efficientnet_lite0

SIGTERM or Ctrl-C saves a checkpoint and exits with code 75. The same command resumes the run, which
ends with the same weights as an uninterrupted one. SIGUSR1 saves a checkpoint and training
continues.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from common.dataset import Dataset, DatasetError, open_dataset
from common.signals import Signals, StoppedError
from serving.container.decision import decide
from training.evaluate.calibration import fit_temperature, softmax
from training.evaluate.inventory_check import check_inventory
from training.evaluate.metrics import evaluate, worst_mistakes
from training.evaluate.products import evaluate_with_products
from training.evaluate.report import Mistake, plot_loss, write_report
from training.export.model_folder import ExportError, export_model
from training.flags import parse
from training.learn.checkpoint import (
    checkpoints_folder,
    disk_error_line,
    load_checkpoint,
    write_tensors,
)
from training.learn.device import choose_device
from training.learn.distributed import World, join
from training.learn.features import features_key
from training.learn.loop import Checkpointing
from training.learn.loop import train as train_steps
from training.learn.memory import keep_freed_memory, release_freed_memory
from training.learn.model import Counter, WeightsError
from training.learn.products import has_products
from training.learn.task import (
    EvalSet,
    Task,
    mean_logits,
    prepare_finetune,
    prepare_head,
    resolve_settings,
)
from training.learn.trainer import DivergedError, Trainer
from training.settings import INTERRUPTED, RESUMABLE, Options

MISTAKES = 24  # shown in the report
STARTED = time.monotonic()  # costs count from here, without the boot of the machine


def train(options: Options) -> None:
    """Run training, evaluation and export. Raises StoppedError on SIGTERM and Ctrl-C."""
    signals = Signals(signal.SIGTERM, signal.SIGUSR1)
    signal.signal(signal.SIGINT, lambda *_: signal.raise_signal(signal.SIGTERM))
    world = join()
    dataset = open_dataset(options.places.data)
    keep_freed_memory()
    torch.set_num_threads(options.machine.threads)
    torch.manual_seed(options.settings.seed)
    device = choose_device(world.local_rank)
    options = resolve_settings(options, dataset, device, world)
    prepare = prepare_head if options.settings.mode == "head" else prepare_finetune
    task = prepare(dataset, options, device, signals, world)
    trainer = Trainer(
        task.trained,
        task.source,
        options.settings,
        device,
        world,
        should_stop=lambda: signals.seen(signal.SIGTERM),
    )
    resume_and_train(options, trainer, task, dataset, signals)
    epoch = trainer.load_best()
    _log(world, f"the weights after epoch {epoch} have the lowest validation loss")
    metrics, mistakes = evaluate_best(trainer, task, dataset, epoch)
    if world.first:
        # The training is saved, and what follows takes a minute: it is simply repeated.
        signals.exit_at_once(signal.SIGTERM, code=INTERRUPTED, message=RESUMABLE)
        release_freed_memory()  # the exports need it where memory is 4 GiB
        write_results(options, trainer, task, dataset, metrics, mistakes)
    world.leave()


def resume_and_train(
    options: Options, trainer: Trainer, task: Task, dataset: Dataset, signals: Signals
) -> None:
    """Take the remaining steps, from the newest checkpoint of these settings and inputs on."""
    settings, places, world = options.settings, options.places, trainer.world
    inputs = features_key(
        dataset, settings.arch, places.weights, settings.size, settings.backbone_precision
    )
    folder = checkpoints_folder(
        places.checkpoints, asdict(settings), inputs=inputs, processes=world.size
    )
    newest = load_checkpoint(folder, asdict(settings)) if world.first else None
    if checkpoint := world.broadcast(newest):
        trainer.restore(checkpoint)
        _log(world, f"resuming after epoch {trainer.epoch}, step {trainer.step}")
    places.output.mkdir(parents=True, exist_ok=True)
    train_steps(
        trainer,
        task.validation.examples,
        places.output,
        Checkpointing(folder, options.machine.checkpoint_seconds, signals),
        dollars_an_hour=places.dollars_an_hour,
        started=STARTED,
        profile=options.extras.profile,
    )


def evaluate_best(
    trainer: Trainer, task: Task, dataset: Dataset, epoch: float
) -> tuple[dict[str, Any], list[Mistake]]:
    """Return the content of metrics.json for the weights after `epoch`, and the worst mistakes."""
    logits, classes = mean_logits(trainer, task.validation), task.validation.classes.numpy()
    metrics: dict[str, Any] = {
        "train": {"photos": len(task.photos), "epoch": epoch},
        "temperature": fit_temperature(logits[:, 0], classes),
    }
    known = has_products(task.validation.photos)
    if known.any():
        metrics["temperature_with_products"] = fit_temperature(logits[known, 1], classes[known])
    mistakes: list[Mistake] = []
    for name, eval_set in (("validation", task.validation), ("test", task.test)):
        if eval_set:
            metrics[name], mistakes = evaluate_on(eval_set, trainer, task, dataset, metrics)
            _log(trainer.world, f"{name} {_summary(metrics[name])}")
            if with_products := metrics[name].get("with_products"):
                _log(trainer.world, f"{name} {_summary(with_products)}, with their products")
    return metrics, mistakes


def evaluate_on(
    eval_set: EvalSet,
    trainer: Trainer,
    task: Task,
    dataset: Dataset,
    temperatures: Mapping[str, float],
) -> tuple[dict[str, Any], list[Mistake]]:
    """Return the metrics on `eval_set`, and the worst mistakes by the photos alone.

    `with_products` has the metrics of the photos whose records name 1 to SLOTS products, if there
    are such photos here and in validation.
    """
    logits = mean_logits(trainer, eval_set)
    probabilities = softmax(logits[:, 0], temperatures["temperature"])
    photos, counts = eval_set.photos, dataset.counts
    values, frequencies = np.unique(task.photos.counts, return_counts=True)
    majority, decision = int(values[frequencies.argmax()]), trainer.settings.decision
    metrics = evaluate(probabilities, photos.counts, counts, majority, decision)
    known = has_products(photos)
    if known.any() and (temperature := temperatures.get("temperature_with_products")):
        metrics["with_products"] = evaluate_with_products(
            probabilities[known],
            softmax(logits[known, 1], temperature),
            photos.subset(known),
            task.fitted,
            counts,
            majority,
            decision,
        )
    metrics["inventory"] = check_inventory(
        probabilities, photos.counts, counts, ids=photos.ids, groups=photos.groups
    )
    predicted = decide(probabilities, counts, decision)
    mistakes = [
        Mistake(
            id=photos.ids[row],
            jpeg=photos.jpeg(row),
            count=int(photos.counts[row]),
            predicted=int(predicted[row]),
            probability=float(probabilities[row, counts.index(int(predicted[row]))]),
        )
        for row in worst_mistakes(probabilities, photos.counts, counts, decision, MISTAKES)
    ]
    return metrics, mistakes


def write_results(
    options: Options,
    trainer: Trainer,
    task: Task,
    dataset: Dataset,
    metrics: dict[str, Any],
    mistakes: list[Mistake],
) -> None:
    """Write plot, report, weights and model folder, and metrics.json last."""
    settings, places = asdict(trainer.settings), options.places
    plot_loss(trainer.history, places.output / "loss.png")
    write_report(
        places.output / "report.html",
        title=f"Run {places.run_id}",
        command=reproducing_command(options.machine.threads, trainer.world),
        settings=settings,
        metrics=metrics,
        history=trainer.history,
        mistakes=mistakes,
    )
    write_tensors(places.output / "weights.pth", task.network.state_dict())
    mirror = trainer.settings.mirror == "yes"
    export_model(
        Counter(task.network.cpu(), metrics["temperature"], mirror=mirror),
        places.model,
        dataset=dataset,
        calibration=task.fitted,
        validation=task.validation.photos,
        metrics=metrics,
        run_id=places.run_id,
        settings=settings,
        int8=options.extras.int8 == "auto",
    )
    (places.output / "metrics.json").write_text(json.dumps(metrics, indent=1))
    print(f"report: {places.output / 'report.html'}, model: {places.model}", file=sys.stderr)


def reproducing_command(threads: int, world: World) -> list[str]:
    """Return the command that gives the same weights on a machine of the same type."""
    start = ["python"]
    if world.size > 1:
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        start = ["torchrun", "--nnodes", str(world.size // here), "--nproc-per-node", str(here)]
    return [*start, "-m", "training.train", *sys.argv[1:], "--threads", str(threads)]


def _summary(metrics: Mapping[str, Any]) -> str:
    return f"accuracy {metrics['accuracy']['value']:.1%} on {metrics['photos']} photos"


def _log(world: World, message: str) -> None:
    if world.first:
        print(message, file=sys.stderr)


def main() -> None:
    options = parse(Options, sys.argv[1:], description=__doc__)
    try:
        train(options)
    except StoppedError:
        print(RESUMABLE, file=sys.stderr)
        sys.exit(INTERRUPTED)
    except (DatasetError, WeightsError, DivergedError, ExportError) as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(disk_error_line(error))


if __name__ == "__main__":
    main()
