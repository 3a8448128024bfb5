"""Head mode against the recipe that courses teach: from photos on disk to a trained head."""

import tempfile
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.training_measure import Clock, Comparison, Measured, Scale, Side, compare
from benchmarks.training_recipe import fastest_workers, run_recipe
from data_prep.pack import pack
from training import features
from training.calibration import softmax
from training.data import Dataset, open_dataset
from training.features import Precision
from training.memory import keep_freed_memory
from training.metrics import evaluate
from training.photos import StillPhotos
from training.quantize import has_vnni
from training.settings import Settings, parse_arguments
from training.signals import Signals
from training.task import MEASURED_BATCH, Task, prepare_head
from training.trainer import Trainer

GOALS: dict[Precision, float] = {"float32": 10.0, "int8": 30.0}
FIXED = {"export", "calibration"}  # parts that take as long for any number of photos
CPU = torch.device("cpu")
REFERENCE = "recipe, BatchNorm in eval"
COUNTED = (
    "From photos on disk, split into train and test, to a trained head. Ours: `data_prep pack` "
    "(decode, squash, encode), export of the backbone, with int8 its calibration, features of all "
    "training photos in both views, and {ours_epochs} epochs of the head, measuring on validation "
    "photos included. The recipe: {epochs} epochs over the training photos, each decoded, "
    "squashed and flipped anew, with {workers} workers (the faster of 0 and 2). On neither side: "
    "imports, loading weights, judging on test photos, saving."
)


def compare_head(
    title: str,
    photos: Path,
    weights: Path,
    arch: str,
    scale: Scale,
    repeats: int,
    *,
    threads: int,
    judged: bool,
) -> Comparison:
    """(a): `photos` is a prepared folder (training_photos); `judged` adds the accuracy."""
    from benchmarks.training_recipe import EPOCHS

    workers = fastest_workers(photos, weights, arch, scale, threads=threads)
    recipe = partial(
        run_recipe,
        photos,
        weights,
        arch,
        size=scale.size,
        workers=workers,
        threads=threads,
        judged=judged,
    )
    precisions: tuple[Precision, ...] = ("float32", "int8") if has_vnni() else ("float32",)
    sides = [
        Side(
            name=f"head mode, {precision} backbone",
            run=partial(
                run_head,
                photos,
                weights,
                arch,
                precision,
                size=scale.size,
                threads=threads,
                judged=judged,
            ),
            goal=GOALS[precision],
        )
        for precision in precisions
    ]
    sides += [
        Side(name=REFERENCE, run=partial(recipe, batch_norm="eval")),
        Side(name="recipe, BatchNorm in train", run=partial(recipe, batch_norm="train")),
    ]
    counted = COUNTED.format(
        ours_epochs=parse_head([]).epochs, epochs=EPOCHS, workers=workers
    )
    return compare(title, sides, repeats, counted=counted, reference=REFERENCE)
