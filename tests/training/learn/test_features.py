import inspect
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from common.dataset import Dataset, Photo, PhotoIndex, Side, open_dataset
from serving.container import preprocess
from serving.container.preprocess import to_pixels
from tests.support.packed import draw_photo, draw_photos, encode, write_packed
from training.learn import features
from training.learn.features import FeatureExtractor, StoppedError, features_key
from training.learn.model import Backbone, export_onnx
from training.learn.photos import decode
from training.settings import BackbonePrecision

PHOTOS, SIZE = 10, 16


class Halves(nn.Module):
    """Pixels, uint8 [N, size, size, 3] → mean red, green, blue of the left and the right half."""

    def forward(self, pixels: Tensor) -> Tensor:
        left, right = pixels.float().chunk(2, dim=2)
        return torch.cat([left.mean((1, 2)), right.mean((1, 2))], dim=1)


def halves(photo: Photo) -> list[float]:
    """What Halves answers, without a network."""
    pixels = to_pixels(photo.jpeg, SIZE).astype(float)
    left, right = pixels[:, : SIZE // 2], pixels[:, SIZE // 2 :]
    return [*left.mean((0, 1)), *right.mean((0, 1))]


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("onnx") / "halves.onnx"
    example = torch.zeros(2, SIZE, SIZE, 3, dtype=torch.uint8)
    export_onnx(Halves(), example, file, names=("pixels", "features"))
    return file


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch, onnx_file: Path) -> None:
    """Chunks of four photos, batches of two, and an export made once: it takes a second."""

    def export_once(module: nn.Module, example: Tensor, file: Path, *, names: object) -> None:
        shutil.copy(onnx_file, file)

    monkeypatch.setattr(features, "CHUNK_PHOTOS", 4)
    monkeypatch.setattr(features, "BATCH_PHOTOS", 2)
    monkeypatch.setattr(features, "export_onnx", export_once)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    photos, folder = draw_photos(PHOTOS + 4, size=SIZE), tmp_path_factory.mktemp("squares")
    write_packed(folder, photos[:PHOTOS], photos[PHOTOS:], photos_a_shard=3, size=SIZE)
    return open_dataset(folder)


def never() -> bool:
    return False


def compute(
    dataset: Dataset,
    folder: Path,
    should_stop: Callable[[], bool] = never,
    side: Side = "train",
    precision: BackbonePrecision = "float32",
) -> NDArray[np.float16]:
    """Features, [photos, views, features], by Halves."""
    return extractor(Halves(), folder, should_stop, precision).compute(dataset, side)


def extractor(
    backbone: nn.Module,
    folder: Path,
    should_stop: Callable[[], bool] = never,
    precision: BackbonePrecision = "float32",
) -> FeatureExtractor:
    return FeatureExtractor(
        backbone=backbone,  # type: ignore[arg-type]
        folder=folder,
        precision=precision,
        size=SIZE,
        threads=2,
        device=torch.device("cpu"),
        should_stop=should_stop,
    )


def chunk_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("train-*.npy"))


class StopAt:
    """Asks to stop when asked for the n-th time; it is asked once for each batch."""

    def __init__(self, n: int) -> None:
        self.n, self.asked = n, 0

    def __call__(self) -> bool:
        self.asked += 1
        return self.asked >= self.n


def test_row_i_is_the_ith_photo(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "export_onnx", export_onnx)
    computed = compute(dataset, tmp_path)
    photos = list(dataset.photos("train"))
    assert computed.shape == (PHOTOS, 2, 6)
    assert computed.dtype == np.float16
    np.testing.assert_allclose(computed[:, 0], [halves(photo) for photo in photos], atol=0.1)


def test_the_second_view_is_the_photo_in_a_mirror(dataset: Dataset, tmp_path: Path) -> None:
    def mirrored(photo: Photo) -> Photo:
        return Photo(photo.id, encode(to_pixels(photo.jpeg, SIZE)[:, ::-1]), photo.count, "g")

    photos = [mirrored(photo) for photo in dataset.photos("train")]
    turned = open_dataset(write_packed(tmp_path / "data", photos, photos[:1], size=SIZE))
    original, mirror = compute(dataset, tmp_path / "a"), compute(turned, tmp_path / "b")
    np.testing.assert_array_equal(original[:, 1], mirror[:, 0])
    np.testing.assert_array_equal(original[:, 0], mirror[:, 1])
    assert not np.array_equal(original[:, 0], original[:, 1])


def test_the_second_call_takes_every_chunk_from_disk(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_again(*_: object, **__: object) -> None:
        raise AssertionError("the backbone is run again")

    first = compute(dataset, tmp_path)
    assert len(chunk_files(tmp_path)) == 3
    monkeypatch.setattr(FeatureExtractor, "_in_onnx_runtime", not_again)
    second = compute(dataset, tmp_path, should_stop=StopAt(1))
    np.testing.assert_array_equal(second, first)


def marked(file: Path) -> None:
    """Change a chunk on disk, so that it shows where a row came from."""
    np.save(file, np.load(file) + np.float16(1000))


def cut(file: Path, kept: int) -> None:
    file.write_bytes(file.read_bytes()[:kept])


DAMAGE: dict[str, Callable[[Path], None]] = {
    "missing": Path.unlink,
    "empty": lambda file: cut(file, 0),
    "cut off in the header": lambda file: cut(file, 50),
    "cut off in the numbers": lambda file: cut(file, 150),
    "no numbers at all": lambda file: np.save(file, np.zeros((0, 2, 6), np.float16)),
    "of fewer photos": lambda file: np.save(file, np.load(file)[:-1]),
    "of one view": lambda file: np.save(file, np.load(file)[:, :1]),
    "something else": lambda file: file.write_bytes(b"no numbers in here, but a good many letters"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_chunk_that_is_not_whole_is_computed_again_alone(
    dataset: Dataset, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    first = compute(dataset, tmp_path)
    files = chunk_files(tmp_path)
    for file in files:
        marked(file)
    damage(files[1])
    asked = StopAt(99)
    second = compute(dataset, tmp_path, should_stop=asked)
    assert asked.asked == 2  # two batches make a chunk
    expected = first + np.float16(1000)
    expected[4:8] = first[4:8]
    np.testing.assert_array_equal(second, expected)
    np.testing.assert_array_equal(np.load(files[1]), first[4:8])


@pytest.mark.parametrize(("batch", "finished"), [(1, 0), (2, 0), (3, 1), (4, 1), (5, 2)])
def test_a_stop_keeps_finished_chunks_and_the_next_call_goes_on(
    dataset: Dataset, tmp_path: Path, batch: int, finished: int
) -> None:
    with pytest.raises(StoppedError):
        compute(dataset, tmp_path / "stopped", should_stop=StopAt(batch))
    assert len(chunk_files(tmp_path / "stopped")) == finished
    asked = StopAt(99)
    resumed = compute(dataset, tmp_path / "stopped", should_stop=asked)
    assert asked.asked == 5 - 2 * finished
    np.testing.assert_array_equal(resumed, compute(dataset, tmp_path / "whole"))


def test_a_kill_while_a_chunk_is_written_leaves_no_chunk(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(stream: object, views: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        compute(dataset, tmp_path)
    assert chunk_files(tmp_path) == []


def test_the_sides_do_not_mix(dataset: Dataset, tmp_path: Path) -> None:
    compute(dataset, tmp_path)
    test = compute(dataset, tmp_path, side="test")
    expected = [halves(photo) for photo in dataset.photos("test")]
    np.testing.assert_allclose(test[:, 0], expected, atol=0.1)


def test_the_key_follows_photos_backbone_and_weights(tmp_path: Path) -> None:
    photos = draw_photos(4, size=SIZE)
    other_photos = [*photos[:3], draw_photo("00009", 1, "product 1", SIZE)]
    weights, other_weights = tmp_path / "a.pth", tmp_path / "b.pth"
    weights.write_bytes(b"weights")
    other_weights.write_bytes(b"other weights")

    def packed(name: str, train: list[Photo]) -> Dataset:
        return open_dataset(write_packed(tmp_path / name, train, photos, size=SIZE))

    dataset = packed("one", photos)
    key = features_key(dataset, "resnet50", weights, SIZE)
    assert key == features_key(packed("elsewhere", photos), "resnet50", weights, SIZE)
    assert len(key) == 16
    others = {
        features_key(packed("two", other_photos), "resnet50", weights, SIZE),
        features_key(dataset, "efficientnet_lite0", weights, SIZE),
        features_key(dataset, "resnet50", other_weights, SIZE),
        features_key(dataset, "resnet50", weights, SIZE + 1),
    }
    assert len({key, *others}) == 5


def test_the_key_follows_the_size_of_a_chunk(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "a.pth"
    weights.touch()
    key = features_key(dataset, "resnet50", weights, SIZE)
    monkeypatch.setattr(features, "CHUNK_PHOTOS", 5)
    assert features_key(dataset, "resnet50", weights, SIZE) != key


def test_the_key_follows_precision_preprocessing_and_what_is_pooled(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "a.pth"
    weights.touch()

    def keys() -> set[str]:
        return {
            features_key(dataset, "resnet50", weights, SIZE, p) for p in get_args(BackbonePrecision)
        }

    seen = keys()
    getsource = inspect.getsource
    for changed in (preprocess, Backbone):

        def edited(code: object, changed: object = changed) -> str:
            return getsource(code) + ("# edited" if code is changed else "")  # type: ignore[arg-type]

        monkeypatch.setattr(inspect, "getsource", edited)
        seen |= keys()
    assert len(seen) == 6


@pytest.mark.parametrize("kept", [0, 100, -1])
def test_a_damaged_model_is_made_again(dataset: Dataset, tmp_path: Path, kept: int) -> None:
    first = compute(dataset, tmp_path)
    model = tmp_path / ".backbone.onnx"
    whole = model.read_bytes()
    cut(model, kept)
    chunk_files(tmp_path)[-1].unlink()
    second = compute(dataset, tmp_path)
    assert model.read_bytes() == whole
    np.testing.assert_array_equal(second, first)


def test_photos_are_decoded_only_a_little_ahead(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = 0

    def counting(photos: PhotoIndex, rows: range, size: int) -> Tensor:
        nonlocal decoded
        decoded += 1
        return decode(photos, rows, size)

    monkeypatch.setattr(features, "AHEAD", 1)
    monkeypatch.setattr(features, "decode", counting)
    with pytest.raises(StoppedError):
        compute(dataset, tmp_path, should_stop=StopAt(1))
    assert decoded <= 2  # of five batches


def test_bfloat16_features_are_near_those_in_float32(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "export_onnx", export_onnx)
    torch.manual_seed(0)
    backbone = Backbone("efficientnet_lite0", all_stages=True)
    of_float, of_bfloat = (
        extractor(backbone, tmp_path / precision, precision=precision)
        .compute(dataset, "train")
        .astype(np.float32)
        for precision in get_args(BackbonePrecision)
    )
    difference = np.abs(of_float - of_bfloat).mean() / np.abs(of_float).mean()
    assert 0 < difference < 0.02
    assert backbone.dtype is torch.float32  # the copy was changed, not this one
