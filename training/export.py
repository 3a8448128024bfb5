"""The model folder: one ONNX file, what it needs as data, and how good it is."""

import json
import platform
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from serving.preprocess import to_pixels
from training.data import Dataset
from training.model import Counter, export_onnx

CHECKED_PHOTOS = 16
TOLERANCE = 1e-3  # in probability; float32 on two runtimes differs by about 1e-6


class ExportError(RuntimeError):
    """The exported model does not answer as the trained one."""


def export_model(
    model: Counter,
    folder: Path,
    *,
    dataset: Dataset,
    metrics: dict[str, Any],
    run_id: str,
    settings: dict[str, Any],
) -> None:
    """Write model.onnx, model.json and metrics.json to `folder`.

    The export is checked on real photos: raises ExportError when a probability differs by more
    than TOLERANCE between ONNX Runtime and PyTorch.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model.eval()  # compared as it is served, without dropout
    file = folder / "model.onnx"
    pixels = _photos(dataset, int(settings["size"]))
    export_onnx(model, pixels[:2], file, names=("pixels", "probabilities"))
    difference = _largest_difference(model, file, pixels)
    if not difference <= TOLERANCE:  # nor is it a number when an answer is none
        raise ExportError(f"ONNX and PyTorch differ by {difference:.2g} in probability")
    description = {
        "arch": settings["arch"],
        "size": settings["size"],
        "decision": settings["decision"],
        "labels": [str(count) for count in dataset.counts],
        "run_id": run_id,
        "dataset": {"name": dataset.name, "manifest_sha256": dataset.manifest_sha256},
        "settings": settings,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "timm", "onnx", "onnxruntime", "pillow")},
        },
        "onnx_check": {"photos": len(pixels), "largest_difference": difference},
    }
    (folder / "model.json").write_text(json.dumps(description, indent=1))
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=1))


def _photos(dataset: Dataset, size: int) -> torch.Tensor:
    photos = islice(dataset.photos("train"), CHECKED_PHOTOS)
    return torch.from_numpy(np.stack([to_pixels(photo.jpeg, size) for photo in photos]))


@torch.inference_mode()
def _largest_difference(model: Counter, file: Path, pixels: torch.Tensor) -> float:
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    served = session.run(None, {"pixels": pixels.numpy()})[0]
    return float(np.abs(served - model(pixels).numpy()).max())
