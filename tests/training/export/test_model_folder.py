import json
import math
import os
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from common.dataset import Dataset, open_dataset
from serving.container.artifact import ModelError, load_model
from serving.container.decision import decide
from serving.container.inference import count_photo
from serving.container.preprocess import to_pixels
from tests.support.packed import COUNTS, SIZE, draw_photos, write_packed
from training.export import int8 as export_int8
from training.export import model_folder as export
from training.export.model_folder import ExportError, export_model
from training.learn.model import Counter, Head, Network, export_onnx

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


def write(model: Counter, folder: Path, dataset: Dataset, *, int8: bool = False) -> Path:
    export_model(
        model,
        folder,
        dataset=dataset,
        calibration=dataset.index("train"),
        validation=dataset.index("test"),
        metrics=METRICS,
        run_id="run-7",
        settings=SETTINGS,
        int8=int8,
    )
    return folder


@pytest.fixture(scope="module")
def folder(model: Counter, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(model, tmp_path_factory.mktemp("run") / "model", dataset)


def test_the_folder_holds_the_network_its_description_and_its_metrics(
    folder: Path, dataset: Dataset
) -> None:
    names = {file.name for file in folder.iterdir()}
    assert names == {"model.onnx", "model.json", "metrics.json", "code"}
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
    assert "resized" in description["preprocessing"]
    assert description["int8"] == {"served": False, "why": "not tried"}


def test_the_served_model_answers_as_the_trained_one(
    folder: Path, model: Counter, dataset: Dataset
) -> None:
    served = load_model(folder)
    for photo in dataset.photos("test"):
        pixels = torch.from_numpy(to_pixels(photo.jpeg, SIZE).copy())
        with torch.inference_mode():
            (expected,) = model.eval()(pixels[None]).tolist()
        prediction = count_photo(photo.jpeg, served)
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
    with pytest.raises(ExportError, match="ONNX Runtime and PyTorch differ by") as error:
        write(model, tmp_path, dataset)
    assert "\n" not in str(error.value)
    with pytest.raises(ModelError):
        load_model(tmp_path)


def test_rounding_on_another_runtime_is_no_difference(
    model: Counter, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, 1e-5)
    load_model(write(model, tmp_path, dataset))


def test_an_export_that_is_cut_off_leaves_no_model(
    model: Counter, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(model, tmp_path, dataset)

    def killed(*_: object, **__: object) -> None:
        (tmp_path / "model.onnx").write_bytes(b"half a net")
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "export_onnx", killed)
    with pytest.raises(KeyboardInterrupt):
        write(model, tmp_path, dataset)
    with pytest.raises(ModelError, match=r"model\.json: no such file"):
        load_model(tmp_path)


def test_the_handlers_in_the_folder_need_nothing_else_of_the_project(
    folder: Path, dataset: Dataset, tmp_path: Path
) -> None:
    photo = next(dataset.photos("test"))
    (tmp_path / "photo.jpg").write_bytes(photo.jpeg)
    script = (
        "import inference, inspect, pathlib, sys\n"
        "model = inference.model_fn(sys.argv[1])\n"
        "photo = pathlib.Path('photo.jpg').read_bytes()\n"
        "asked = inference.input_fn(photo, 'image/jpeg')\n"
        "print(inference.output_fn(inference.predict_fn(asked, model), 'application/json')[0])\n"
        "handlers = inference.input_fn, inference.predict_fn, inference.output_fn\n"
        "print([len(inspect.signature(each).parameters) for each in handlers])\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('torch', 'starlette')])\n"
    )
    printed = subprocess.run(
        [sys.executable, "-c", script, folder],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(folder / "code")},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert json.loads(printed[0]) == vars(count_photo(photo.jpeg, load_model(folder)))
    assert printed[1:] == ["[2, 2, 2]", "[]"]  # with more, SageMaker would pass its context


class Coloured(nn.Module):
    """Pixels, uint8 [N, size, size, 3] → features [N, 12], by two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU()
        )

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.layers(pixels.permute(0, 3, 1, 2) / 255).mean((2, 3))
        return features


@pytest.fixture(scope="module")
def convolutional() -> Counter:
    torch.manual_seed(0)
    head = Head(12, len(COUNTS), hidden=8, dropout=0.5)
    return Counter(Network(Coloured(), head), mirror=True)  # type: ignore[arg-type]


def test_an_int8_variant_comes_with_its_evidence_and_answers_alike(
    convolutional: Counter, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "has_vnni", lambda: True)
    folder = write(convolutional, tmp_path / "model", dataset, int8=True)
    found = json.loads((folder / "model.json").read_text())["int8"]
    assert found["served"] is True
    assert (found["calibrated_on"], found["photos"]) == (18, 6)
    low, high = (found["cross_entropy_difference"][end] for end in ("low", "high"))
    assert -0.01 < low <= high <= found["allowed"]["cross_entropy"]
    in_float, in_int8 = (load_model(folder, precision=name) for name in ("float32", "int8"))
    for photo in dataset.photos("test"):
        one, other = count_photo(photo.jpeg, in_float), count_photo(photo.jpeg, in_int8)
        assert other.mean == pytest.approx(one.mean, abs=0.05)


def test_an_int8_variant_that_does_worse_is_not_kept(
    convolutional: Counter, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "has_vnni", lambda: True)
    monkeypatch.setitem(export_int8.ALLOWED, "cross_entropy", -1.0)
    folder = write(convolutional, tmp_path / "model", dataset, int8=True)
    assert json.loads((folder / "model.json").read_text())["int8"]["served"] is False
    assert not (folder / "model-int8.onnx").exists()
    assert load_model(folder).precision == "float32"


def test_without_vnni_int8_is_not_judged(
    convolutional: Counter, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "has_vnni", lambda: False)
    folder = write(convolutional, tmp_path / "model", dataset, int8=True)
    assert "no VNNI" in json.loads((folder / "model.json").read_text())["int8"]["why"]
    assert not (folder / "model-int8.onnx").exists()


def distributions(*rows: list[float]) -> Any:
    return np.array(rows * 50, np.float32)


@pytest.mark.parametrize(
    ("in_int8", "served"),
    [
        (distributions([0.6, 0.3, 0.1], [0.2, 0.5, 0.3]), True),
        (distributions([0.595, 0.305, 0.1], [0.2, 0.495, 0.305]), True),
        (distributions([0.5, 0.4, 0.1], [0.2, 0.45, 0.35]), False),  # surer of wrong counts
        (distributions([0.44, 0.45, 0.11], [0.2, 0.7, 0.1]), False),  # other counts
    ],
)
def test_int8_is_judged_against_float_on_the_same_photos(in_int8: Any, served: bool) -> None:
    in_float = distributions([0.6, 0.3, 0.1], [0.2, 0.5, 0.3])
    truth = np.array([1, 2] * 50)
    found = export_int8.compare(in_float, in_int8, truth, COUNTS, "argmax")
    assert found["served"] is served
