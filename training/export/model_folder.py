"""The model folder: the network in ONNX, what it needs as data, how good it is, and the handlers.

model.onnx, model-int8.onnx     the second where it is as good
model.json                      preprocessing, labels, provenance, what was checked
metrics.json
code/                           serving/container/, for other containers
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
NEEDED = ("numpy", "onnxruntime", "pillow")
CHECKED_PHOTOS = 16
TOLERANCE = 1e-3  # in probability; float32 on two runtimes differs by about 1e-6


class ExportError(RuntimeError):
    """The exported model does not answer as the trained one."""


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
    int8: bool = True,
) -> None:
    """Write the model folder. With `int8`, and on a CPU where int8 is exact, a variant in int8 is
    calibrated on `calibration` photos and kept if it does as well on `validation` photos.

    model.json comes last, and nothing serves a folder without it: a model is complete or absent.
    The export is checked on real photos: raises ExportError when a probability differs by more
    than TOLERANCE between ONNX Runtime and PyTorch.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / DESCRIPTION).unlink(missing_ok=True)
    model.eval()  # compared as it is served, without dropout
    file = folder / "model.onnx"
    pixels = _photos(dataset, int(settings["size"]))
    export_onnx(model, pixels[:2], file, names=("pixels", "probabilities"))
    difference = _largest_difference(model, file, pixels)
    if not difference <= TOLERANCE:  # nor is it a number when an answer is none
        raise ExportError(f"ONNX and PyTorch differ by {difference:.2g} in probability")
    variant = {"served": False, "why": "not tried"}
    (folder / NETWORKS["int8"]).unlink(missing_ok=True)
    if int8 and not has_vnni():
        variant = {"served": False, "why": "the training machine had no VNNI to judge it with"}
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
    description = {
        "arch": settings["arch"],
        "size": settings["size"],
        "preprocessing": "upright by EXIF, RGB, squashed to size × size, bicubic; 0 to 255",
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
        "int8": variant,
    }
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=1))
    write_atomic(folder / DESCRIPTION, json.dumps(description, indent=1).encode())


def _write_code(folder: Path) -> None:
    container = folder / "serving" / "container"
    container.mkdir(parents=True, exist_ok=True)
    for file in Path(serving.container.__file__).parent.glob("*.py"):
        shutil.copyfile(file, container / file.name)
    shutil.copyfile(Path(__file__).with_name("entry_point.py"), folder / "inference.py")
    pins = "".join(f"{name}=={version(name)}\n" for name in NEEDED)
    (folder / "requirements.txt").write_text(pins)


def _photos(dataset: Dataset, size: int) -> torch.Tensor:
    photos = islice(dataset.photos("train"), CHECKED_PHOTOS)
    return torch.from_numpy(np.stack([to_pixels(photo.jpeg, size) for photo in photos]))


@torch.inference_mode()
def _largest_difference(model: Counter, file: Path, pixels: torch.Tensor) -> float:
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    served = session.run(None, {"pixels": pixels.numpy()})[0]
    return float(np.abs(served - model(pixels).numpy()).max())
