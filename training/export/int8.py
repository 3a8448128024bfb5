"""An int8 variant of an exported model, served where it loses next to nothing."""

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
from training.learn.photos import decode
from training.learn.quantize import quantize_onnx

CALIBRATED_ON = 64  # photos
CALIBRATED_AT_ONCE = 2  # photos; each feature map of them is in memory
BATCH = 8  # photos, of judging
# What may be lost against float32 on the same photos, at the worse end of the 95 % interval. What
# another seed changes is several times as much: benchmarks/accuracy/README.md.
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
    """Write `int8_model`, calibrated on training photos, and judge it on `validation` photos.

    Returns what model.json says of it; where `served` is False, the file is gone again. To be
    called on a CPU with VNNI, where int8 is exact.
    """
    batches = calibration_batches(calibration, size)
    quantize_onnx(float_model, int8_model, batches)
    in_float, in_int8 = (
        probabilities_of(file, validation, size) for file in (float_model, int8_model)
    )
    evidence = compare(in_float, in_int8, validation.counts, counts, decision)
    if not evidence["served"]:
        int8_model.unlink()
    return {"calibrated_on": sum(map(len, batches)), "photos": len(validation), **evidence}


def calibration_batches(photos: PhotoIndex, size: int) -> list[NDArray[np.uint8]]:
    """The first CALIBRATED_ON of `photos`, pixels [CALIBRATED_AT_ONCE, size, size, 3] each."""
    chosen = range(min(len(photos), CALIBRATED_ON))
    return [
        decode(photos, chosen[start : start + CALIBRATED_AT_ONCE], size, pinned=False).numpy()
        for start in chosen[::CALIBRATED_AT_ONCE]
    ]


def compare(
    in_float: NDArray[np.float32],
    in_int8: NDArray[np.float32],
    truth: NDArray[np.int64],
    counts: Sequence[int],
    decision: Decision,
) -> dict[str, Any]:
    """How much worse `in_int8` is than `in_float`, probabilities [photos, classes] of the same
    photos, with intervals of the paired differences; `served` when that is allowed."""
    classes = np.searchsorted(np.array(counts), truth)

    def surprise(found: NDArray[np.float32]) -> NDArray[np.float64]:
        of_truth = found[np.arange(len(truth)), classes].astype(np.float64)
        nats: NDArray[np.float64] = -np.log(np.maximum(of_truth, 1e-12))
        return nats

    def exact(found: NDArray[np.float32]) -> NDArray[np.float64]:
        right: NDArray[np.bool_] = decide(found, counts, decision) == truth
        return right.astype(np.float64)

    loss = with_interval(surprise(in_int8) - surprise(in_float))
    right = with_interval(exact(in_int8) - exact(in_float))
    return {
        "served": loss["high"] <= ALLOWED["cross_entropy"] and right["low"] >= ALLOWED["exact"],
        "cross_entropy_difference": loss,
        "exact_difference": right,
        "allowed": ALLOWED,
    }


def probabilities_of(file: Path, photos: PhotoIndex, size: int) -> NDArray[np.float32]:
    """What an exported model answers, [photos, classes]."""
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])

    def answers() -> Iterator[NDArray[np.float32]]:
        starts = range(0, len(photos), BATCH)
        for start in tqdm(starts, desc=f"judging {file.stem}", unit="batch"):
            rows = range(start, min(start + BATCH, len(photos)))
            pixels = decode(photos, rows, size, pinned=False).numpy()
            yield session.run(None, {"pixels": pixels})[0]

    return np.concatenate(list(answers()))
