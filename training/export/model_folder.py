"""The model folder that is served.

model.onnx, model-int8.onnx     the network; in int8 only if it is nearly as accurate
model.json                      preprocessing, labels, provenance, results of checks
metrics.json
code/                           the handlers, for containers other than ours
"""

import json
import platform
import shutil
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

import serving.container
from common.dataset import Dataset, PhotoIndex
from common.files import write_atomic
from serving.container.artifact import NETWORKS, has_vnni
from serving.container.preprocess import to_pixels
from training.export.int8 import export_int8
from training.learn.model import Counter, export_onnx

DESCRIPTION = "model.json"
PINNED = ("numpy", "onnxruntime", "pillow")  # requirements of the handlers
CHECKED_PHOTOS = 16
TOLERANCE = 1e-3  # in probability; two runtimes differ by about 1e-6 in float32


class ExportError(RuntimeError):
    """The exported model differs from the trained one; the message is one line."""


def export_model(
    model: Counter,
    folder: Path,
    *,
    dataset: Dataset,
    calibration: PhotoIndex,
    validation: PhotoIndex,
    metrics: dict[str, Any],
    run_id: str,
    settings: dict[str, Any],
    int8: bool,
) -> None:
    """Write the model folder, model.json last: without it, no model is served.

    With `int8`, on a CPU with VNNI, also exports an int8 variant, calibrated on `calibration`
    photos, and keeps it if it is nearly as accurate on `validation` photos. Raises ExportError if
    a probability of a photo differs by more than TOLERANCE between ONNX Runtime and PyTorch.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / DESCRIPTION).unlink(missing_ok=True)
    model.eval()
    file = folder / "model.onnx"
    pixels = _photos(dataset, int(settings["size"]))
    export_onnx(model, pixels[:2], file, names=("pixels", "probabilities"))
    difference = _largest_difference(model, file, pixels)
    if not difference <= TOLERANCE:  # also if it is NaN
        raise ExportError(
            f"the export failed: probabilities of ONNX Runtime and PyTorch differ by "
            f"{difference:.2g}; install the versions in training/requirements.txt"
        )
    variant: dict[str, Any] = {"served": False, "why": "not tried"}
    (folder / NETWORKS["int8"]).unlink(missing_ok=True)
    if int8 and not has_vnni():
        variant["why"] = "the training machine has no VNNI, which the comparison needs"
    elif int8:
        variant = export_int8(
            file,
            folder / NETWORKS["int8"],
            calibration=calibration,
            validation=validation,
            size=int(settings["size"]),
            counts=dataset.counts,
            decision=settings["decision"],
        )
    _write_code(folder / "code")
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=1))
    description = _describe(dataset, settings) | {
        "run_id": run_id,
        "onnx_check": {"photos": len(pixels), "largest_difference": difference},
        "int8": variant,
    }
    write_atomic(folder / DESCRIPTION, json.dumps(description, indent=1).encode())


def _describe(dataset: Dataset, settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "arch": settings["arch"],
        "size": settings["size"],
        "preprocessing": "upright by EXIF, RGB, resized to size × size, bicubic; 0 to 255",
        "decision": settings["decision"],
        "labels": [str(count) for count in dataset.counts],
        "dataset": {"name": dataset.name, "manifest_sha256": dataset.manifest_sha256},
        "settings": settings,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "timm", "onnx", "onnxruntime", "pillow")},
        },
    }


def _write_code(folder: Path) -> None:
    container = folder / "serving" / "container"
    container.mkdir(parents=True, exist_ok=True)
    for file in Path(serving.container.__file__).parent.glob("*.py"):
        shutil.copyfile(file, container / file.name)
    shutil.copyfile(Path(__file__).with_name("entry_point.py"), folder / "inference.py")
    pins = "".join(f"{name}=={version(name)}\n" for name in PINNED)
    (folder / "requirements.txt").write_text(pins)


def _photos(dataset: Dataset, size: int) -> torch.Tensor:
    photos = islice(dataset.photos("train"), CHECKED_PHOTOS)
    return torch.from_numpy(np.stack([to_pixels(photo.jpeg, size) for photo in photos]))


@torch.inference_mode()
def _largest_difference(model: Counter, file: Path, pixels: torch.Tensor) -> float:
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    served = session.run(None, {"pixels": pixels.numpy()})[0]
    return float(np.abs(served - model(pixels).numpy()).max())
