"""An int8 variant of the exported model, which is served if it is nearly as accurate."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tqdm import tqdm

from common.dataset import PhotoIndex
from serving.container.decision import Decision, decide
from training.evaluate.metrics import with_interval
from training.export.quantize import quantize_onnx
from training.learn.photos import decode

CALIBRATION_PHOTOS = 64
CALIBRATION_BATCH = 2  # photos; all of their feature maps are in memory
EVAL_BATCH = 8  # photos
# What may be lost against float32 on the same photos, at the worse end of the 95 % interval.
# Another seed changes several times as much: benchmarks/accuracy/README.md.
ALLOWED = {"cross_entropy": 0.01, "exact": -0.02}


def export_int8(
    float_model: Path,
    int8_model: Path,
    *,
    calibration: PhotoIndex,
    validation: PhotoIndex,
    size: int,
    counts: Sequence[int],
    decision: Decision,
) -> dict[str, Any]:
    """Write `int8_model` and compare it with `float_model` on `validation` photos.

    Returns its entry in model.json; the file is removed if `served` is False. The comparison needs
    a CPU with VNNI, where int8 products are exact.
    """
    batches = _calibration_batches(calibration, size)
    quantize_onnx(float_model, int8_model, batches)
    in_float, in_int8 = (_predict(file, validation, size) for file in (float_model, int8_model))
    evidence = compare(in_float, in_int8, validation.counts, counts, decision)
    if not evidence["served"]:
        int8_model.unlink()
    return {"calibrated_on": sum(map(len, batches)), "photos": len(validation), **evidence}


def _calibration_batches(photos: PhotoIndex, size: int) -> list[NDArray[np.uint8]]:
    """Return the first CALIBRATION_PHOTOS as batches of pixels [N, size, size, 3]."""
    chosen = range(min(len(photos), CALIBRATION_PHOTOS))
    return [
        decode(photos, chosen[start : start + CALIBRATION_BATCH], size).numpy()
        for start in chosen[::CALIBRATION_BATCH]
    ]


def compare(
    in_float: NDArray[np.float32],
    in_int8: NDArray[np.float32],
    truth: NDArray[np.int64],
    counts: Sequence[int],
    decision: Decision,
) -> dict[str, Any]:
    """Compare probabilities of the same photos, [photos, classes], by paired differences.

    `served` tells whether the int8 model is within ALLOWED.
    """
    classes = np.searchsorted(np.array(counts), truth)

    def nll(probabilities: NDArray[np.float32]) -> NDArray[np.float64]:
        of_truth = probabilities[np.arange(len(truth)), classes].astype(np.float64)
        nats: NDArray[np.float64] = -np.log(np.maximum(of_truth, 1e-12))
        return nats

    def exact(probabilities: NDArray[np.float32]) -> NDArray[np.float64]:
        correct: NDArray[np.bool_] = decide(probabilities, counts, decision) == truth
        return correct.astype(np.float64)

    loss = with_interval(nll(in_int8) - nll(in_float))
    accuracy = with_interval(exact(in_int8) - exact(in_float))
    return {
        "served": loss["high"] <= ALLOWED["cross_entropy"] and accuracy["low"] >= ALLOWED["exact"],
        "cross_entropy_difference": loss,
        "exact_difference": accuracy,
        "allowed": ALLOWED,
    }


def _predict(file: Path, photos: PhotoIndex, size: int) -> NDArray[np.float32]:
    """Return the probabilities by an exported model, [photos, classes]."""
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])

    def batches() -> Iterator[NDArray[np.float32]]:
        starts = range(0, len(photos), EVAL_BATCH)
        for start in tqdm(starts, desc=f"evaluating {file.stem}", unit="batch"):
            rows = range(start, min(start + EVAL_BATCH, len(photos)))
            yield session.run(None, {"pixels": decode(photos, rows, size).numpy()})[0]

    return np.concatenate(list(batches()))
