from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from training.export.quantize import quantize_onnx
from training.learn.model import export_onnx

SIZE = 16


class Convolutions(nn.Module):
    """What backbones are made of: ReLU and ReLU6, depthwise, a sum, pooled mean and spread."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.narrow = nn.Conv2d(8, 32, 1, bias=False)
        self.last = nn.Conv2d(32, 4, 1)
        with torch.no_grad():
            self.depthwise.weight[0] *= 100  # one scale for all would lose the others
            self.depthwise.weight[1] = 0  # switched off
            # 31 of 32 weights are rounded up: 0.3 steps each add up.
            self.last.weight.fill_(0.7 / 127)
            self.last.weight[:, 0] = 1.0

    def forward(self, pixels: Tensor) -> Tensor:
        stem = nn.functional.relu6(self.stem(pixels.permute(0, 3, 1, 2).float() / 128 - 1))
        early = nn.functional.relu6(self.depthwise(stem)) + stem
        late = self.last(nn.functional.relu(self.narrow(early)))
        maps = [early.flatten(2), late.flatten(2)]
        return torch.cat([s for m in maps for s in (m.mean(2), m.std(2, correction=0))], dim=1)


def draw(photos: int, seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (photos, SIZE, SIZE, 3), np.uint8)


CALIBRATION = [draw(8, seed) for seed in range(4)]


@pytest.fixture(scope="module")
def float_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("onnx") / "float.onnx"
    export_onnx(
        Convolutions(),
        torch.zeros(2, SIZE, SIZE, 3, dtype=torch.uint8),
        file,
        names=("pixels", "features"),
    )
    return file


@pytest.fixture(scope="module")
def int8_model(float_model: Path) -> Path:
    file = float_model.with_name("int8.onnx")
    quantize_onnx(float_model, file, CALIBRATION)
    return file


def features(model: Path, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What the network answers by ONNX's own definitions, on any processor: ONNX Runtime adds
    products of 8 bits in 16 where there is no VNNI, and they saturate."""
    answer: NDArray[np.float32] = ReferenceEvaluator(str(model)).run(None, {"pixels": pixels})[0]
    return answer


def weights(model: Path) -> dict[str, NDArray[np.generic]]:
    """Every initializer of four dimensions, of which convolutions have one each."""
    arrays = {i.name: numpy_helper.to_array(i) for i in onnx.load(model).graph.initializer}
    return {name: array for name, array in arrays.items() if array.ndim == 4 and array.size > 3}


def test_the_features_of_new_photos_stay_near(float_model: Path, int8_model: Path) -> None:
    photos = draw(32, seed=99)
    wanted, got = features(float_model, photos), features(int8_model, photos)
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, atol=0.03)


def assert_same_means(got: NDArray[np.float32], wanted: NDArray[np.float32]) -> None:
    """Of the last convolution; where the bias does not make up for rounding they are 0.01 apart."""
    np.testing.assert_allclose(got[:, 16:20].mean(0), wanted[:, 16:20].mean(0), atol=0.002)


def test_rounding_the_weights_does_not_shift_the_mean(float_model: Path, int8_model: Path) -> None:
    photos = draw(32, seed=99)
    assert_same_means(features(int8_model, photos), features(float_model, photos))


def test_convolutions_are_int8_but_for_the_first(int8_model: Path) -> None:
    types = {name.split(".")[0]: array.dtype for name, array in weights(int8_model).items()}
    assert types.pop("stem") == np.float32
    assert types == dict.fromkeys(("depthwise", "narrow", "last"), np.dtype(np.int8))


def test_the_same_photos_give_the_same_bytes(
    float_model: Path, int8_model: Path, tmp_path: Path
) -> None:
    quantize_onnx(float_model, tmp_path / "again.onnx", CALIBRATION)
    assert (tmp_path / "again.onnx").read_bytes() == int8_model.read_bytes()


class Interrupted:
    """Calibration photos that end in Ctrl-C, in the first pass over them or the second."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        for batch in CALIBRATION:
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            yield batch


@pytest.mark.parametrize("after", [0, 3, 4, 7])
def test_interrupted_it_leaves_what_was_there(
    float_model: Path, tmp_path: Path, after: int
) -> None:
    file = tmp_path / "int8.onnx"
    with pytest.raises(KeyboardInterrupt):
        quantize_onnx(float_model, file, Interrupted(after))
    assert not file.exists()
    file.write_text("an earlier model")
    with pytest.raises(KeyboardInterrupt):
        quantize_onnx(float_model, file, Interrupted(after))
    assert file.read_text() == "an earlier model"


class Pair(nn.Module):
    """Two networks that count together, on the photo and on its mirror image."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Convolutions(), Convolutions(seed=1)

    def forward(self, pixels: Tensor) -> Tensor:
        both = torch.cat([pixels, pixels.flip(2)])
        return (self.first(both) + self.second(both)).reshape(2, -1, 24).mean(0)


def test_of_several_networks_each_first_convolution_stays_float(tmp_path: Path) -> None:
    example = torch.zeros(2, SIZE, SIZE, 3, dtype=torch.uint8)
    export_onnx(Pair(), example, tmp_path / "float.onnx", names=("pixels", "features"))
    quantize_onnx(tmp_path / "float.onnx", tmp_path / "int8.onnx", CALIBRATION)
    found = weights(tmp_path / "int8.onnx")
    in_float = {name for name, array in found.items() if array.dtype == np.float32}
    assert {name.removesuffix(".weight") for name in in_float} == {"first.stem", "second.stem"}
    photos = draw(32, seed=99)
    wanted, got = (features(tmp_path / name, photos) for name in ("float.onnx", "int8.onnx"))
    np.testing.assert_allclose(got, wanted, atol=0.06)
