"""Head mode against the course's recipe: from photos on disk to a trained head."""

import tempfile
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from benchmarks.training.measure import Clock, Comparison, Measured, Side, compare
from benchmarks.training.recipe import EPOCHS, Work, fastest_workers, judge, run_recipe
from common.dataset import Dataset, open_dataset
from common.signals import Signals
from data_prep.pack import pack
from serving.container.artifact import has_vnni
from training.learn import features
from training.learn.features import Precision
from training.learn.memory import keep_freed_memory
from training.learn.photos import StillPhotos
from training.learn.quantize import quantize_onnx
from training.learn.task import MEASURED_BATCH, Task, classes_of, prepare_head
from training.learn.trainer import Trainer
from training.settings import RECIPES, Settings, parse_arguments

GOALS: dict[Precision, float] = {"float32": 10.0, "bfloat16": 10.0, "int8": 30.0}
FIXED_PARTS = ("network", "export", "calibration")  # as long for any number of photos
CPU = torch.device("cpu")
REFERENCE = "recipe, BatchNorm in eval"
COUNTED = (
    "From JPEG files on disk, split into train and test, to a trained head. Ours: `data_prep "
    "pack` of the training and test photos (decode, squash, encode), loading the backbone and, but "
    "for bfloat16, exporting it, with int8 its calibration, features of all training photos in "
    "both views, {ours} epochs of the head with measuring on the validation part. The recipe: "
    "loading the network, {recipe} epochs over the training photos, each decoded, squashed and "
    "flipped anew; {workers} workers, the faster of 0 and 2. On neither side: imports, judging on "
    "test photos, saving."
)


def compare_head(title: str, work: Work, repeats: int, *, timed: bool = True) -> Comparison:
    """(a): with weights that were not trained, `work.judged` is pointless. Where it is not `timed`
    but judged, there are no goals, and no row that is about time alone."""
    workers = fastest_workers(work)
    recipe = partial(run_recipe, work, workers=workers)
    precisions: list[Precision] = ["float32", "bfloat16"]
    if has_vnni():
        precisions.append("int8")
    sides = [
        *(
            Side(
                name=f"head mode, {precision} backbone",
                run=partial(run_head, work, precision),
                goal=GOALS[precision] if timed else None,
            )
            for precision in precisions
        ),
        Side(name=REFERENCE, run=partial(recipe, batch_norm="eval")),
    ]
    if timed:
        sides.append(
            Side(name="recipe, BatchNorm in train", run=partial(recipe, batch_norm="train"))
        )
    counted = COUNTED.format(ours=RECIPES["head"]["epochs"], recipe=EPOCHS, workers=workers)
    return compare(title, sides, repeats, counted=counted, reference=REFERENCE)


def run_head(work: Work, precision: Precision) -> Measured:
    """Head mode of training.train, with its recipe."""
    keep_freed_memory()
    torch.set_num_threads(work.threads)
    torch.manual_seed(0)
    clock = Clock()
    with clock.part("pack"):
        pack(work.photos, "benchmark", size=work.size, workers=work.threads)
    dataset = open_dataset(work.photos / "datasets" / "benchmark")
    task = train_head(dataset, work, precision, clock)
    facts = judge_head(dataset, task, work) if work.judged else {}
    return Measured(
        photos=dataset.photo_total("train"),
        seconds=clock.seconds,
        parts=clock.parts,
        facts=facts,
    )


def train_head(dataset: Dataset, work: Work, precision: Precision, clock: Clock) -> Task:
    """Features and head, with the weights that are best on the validation part."""
    args = parse_arguments(
        [
            *("--mode", "head", "--data", str(dataset.folder), "--weights", str(work.weights)),
            *("--output", "unused", "--arch", work.arch, "--size", str(work.size)),
            *("--backbone-precision", precision, "--threads", str(work.threads), "--skip-test"),
            *("--precision", "float32"),
        ]
    )
    settings = Settings(**{name: getattr(args, name) for name in Settings.__dataclass_fields__})
    export, calibration = clock.part("export"), clock.part("calibration")
    with (
        tempfile.TemporaryDirectory() as checkpoints,
        patch("training.learn.features._export", export(features._export)),
        patch("training.learn.features.quantize_onnx", calibration(quantize_onnx)),
        clock.part("features"),
    ):
        task = prepare_head(dataset, settings, args, Path(checkpoints), CPU, Signals())
    with clock.part("head"):
        trainer = Trainer(task.trained, task.source, settings, CPU)
        while not trainer.finished:
            for _ in trainer.train_epoch():
                pass
            trainer.measure(task.validation.examples)
        trainer.load_best()
    return task


@torch.inference_mode()
def judge_head(dataset: Dataset, task: Task, work: Work) -> dict[str, float]:
    """Accuracy on the test photos as the model is served: in float32, unmirrored."""
    photos = dataset.index("test")
    batches = StillPhotos(
        photos,
        size=work.size,
        batch_size=MEASURED_BATCH,
        threads=work.threads,
        device=CPU,
    )
    network = task.network.eval()
    logits: Tensor = torch.cat([network(pixels) for pixels in batches])
    return judge(logits, np.asarray(classes_of(dataset, photos)), dataset.counts)
