import json
import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from packed import COUNTS, SIZE, draw_photos, write_packed
from torch import Tensor, nn

from serving.decision import decide
from serving.inference import ModelError, load_model, predict_fn
from serving.preprocess import to_pixels
from training import export
from training.data import Dataset, open_dataset
from training.export import ExportError, export_model
from training.model import Counter, Head, Network, export_onnx

METRICS = {"test": {"photos": 6, "accuracy": {"value": 0.5, "low": 0.2, "high": 0.8}}}
SETTINGS = {"arch": "resnet50", "size": SIZE, "decision": "median", "epochs": 3}


class Corners(nn.Module):
    """Pixels, uint8 [N, size, size, 3] → features [N, 12]: what the corners show."""

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels[:, :: SIZE - 1, :: SIZE - 1].float().flatten(1) / 255


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    photos, folder = draw_photos(24), tmp_path_factory.mktemp("squares")
    return open_dataset(write_packed(folder, photos[:18], photos[18:]))


@pytest.fixture(scope="module")
def model() -> Counter:
    torch.manual_seed(0)
    head = Head(12, len(COUNTS), hidden=8, dropout=0.5)
    return Counter(Network(Corners(), head))  # type: ignore[arg-type]


def write(model: Counter, folder: Path, dataset: Dataset) -> Path:
    export_model(model, folder, dataset=dataset, metrics=METRICS, run_id="run-7", settings=SETTINGS)
    return folder


@pytest.fixture(scope="module")
def folder(model: Counter, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(model, tmp_path_factory.mktemp("run") / "model", dataset)


def test_the_folder_holds_the_network_its_description_and_its_metrics(
    folder: Path, dataset: Dataset
) -> None:
    assert {file.name for file in folder.iterdir()} == {"model.onnx", "model.json", "metrics.json"}
    assert json.loads((folder / "metrics.json").read_text()) == METRICS
    description = json.loads((folder / "model.json").read_text())
    assert description["arch"] == "resnet50"
    assert description["size"] == SIZE
    assert description["decision"] == "median"
    assert description["labels"] == ["1", "2", "3"]
    assert description["run_id"] == "run-7"
    assert description["settings"] == SETTINGS
    assert description["dataset"] == {
        "name": "squares",
        "manifest_sha256": dataset.manifest_sha256,
    }
    assert description["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert description["onnx_check"]["photos"] == 16
    assert 0 <= description["onnx_check"]["largest_difference"] < 1e-4


def test_the_served_model_answers_as_the_trained_one(
    folder: Path, model: Counter, dataset: Dataset
) -> None:
    served = load_model(folder)
    for photo in dataset.photos("test"):
        pixels = torch.from_numpy(to_pixels(photo.jpeg, SIZE).copy())
        with torch.inference_mode():
            (expected,) = model.eval()(pixels[None]).tolist()
        prediction = predict_fn(photo.jpeg, served)
        assert prediction.count == decide(np.array([expected], np.float32), COUNTS, "median")[0]
        assert list(prediction.probabilities.values()) == pytest.approx(expected, abs=1e-5)


def spoil(monkeypatch: pytest.MonkeyPatch, change: float) -> None:
    """Let the export write another head's bias: `change` is added to it."""

    def wrong(module: nn.Module, *args: Any, **kwargs: Any) -> None:
        other = deepcopy(module)
        with torch.no_grad():
            other.network.head.layers[-1].bias[0] += change
        export_onnx(other, *args, **kwargs)

    monkeypatch.setattr(export, "export_onnx", wrong)


@pytest.mark.parametrize("change", [0.02, -0.007, -50, math.nan])
def test_an_export_that_answers_otherwise_is_refused_and_cannot_be_served(
    model: Counter,
    dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: float,
) -> None:
    spoil(monkeypatch, change)
    with pytest.raises(ExportError, match="ONNX and PyTorch differ by") as error:
        write(model, tmp_path, dataset)
    assert "\n" not in str(error.value)
    with pytest.raises(ModelError):
        load_model(tmp_path)


def test_rounding_on_another_runtime_is_no_difference(
    model: Counter, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, 1e-5)
    load_model(write(model, tmp_path, dataset))
