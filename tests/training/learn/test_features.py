import inspect
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from common.dataset import Dataset, Photo, PhotoIndex, Side, open_dataset
from serving.container import preprocess
from serving.container.preprocess import to_pixels
from tests.support.packed import draw_photo, draw_photos, encode, write_packed
from training.learn import features
from training.learn.features import (
    Features,
    Precision,
    PrecisionError,
    StoppedError,
    compute_features,
    features_key,
)
from training.learn.model import Backbone, export_onnx
from training.learn.photos import decode

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


class Convolved(nn.Module):
    """Two convolutions, the second of which is made int8."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU6(), nn.Conv2d(8, 6, 3))

    def forward(self, pixels: Tensor) -> Tensor:
        maps: Tensor = self.layers(pixels.permute(0, 3, 1, 2).float() / 255)
        return maps.mean((2, 3))


@pytest.fixture(scope="module")
def convolved_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("onnx") / "convolved.onnx"
    example = torch.zeros(2, SIZE, SIZE, 3, dtype=torch.uint8)
    export_onnx(Convolved(), example, file, names=("pixels", "features"))
    return file


@pytest.fixture
def convolved(small_chunks: None, monkeypatch: pytest.MonkeyPatch, convolved_file: Path) -> None:
    """A backbone that can be quantised, on a CPU that can run it."""

    def export_once(module: nn.Module, example: Tensor, file: Path, *, names: object) -> None:
        shutil.copy(convolved_file, file)

    monkeypatch.setattr(features, "export_onnx", export_once)
    monkeypatch.setattr(features, "has_vnni", lambda: True)
    monkeypatch.setattr(features, "CALIBRATION_PHOTOS", 6)
    monkeypatch.setattr(features, "CALIBRATION_BATCH", 2)


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
    precision: Precision = "float32",
) -> Features:
    return compute_features(
        dataset,
        side,
        Halves(),  # type: ignore[arg-type]
        folder,
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


def test_row_i_of_everything_is_the_same_photo(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "export_onnx", export_onnx)
    computed = compute(dataset, tmp_path)
    photos = list(dataset.photos("train"))
    assert computed.ids == [photo.id for photo in photos]
    assert computed.groups == [photo.group for photo in photos]
    assert computed.counts.tolist() == [photo.count for photo in photos]
    assert computed.views.shape == (PHOTOS, 2, 6)
    assert computed.views.dtype == np.float16
    np.testing.assert_allclose(computed.views[:, 0], [halves(photo) for photo in photos], atol=0.1)


def test_the_second_view_is_the_photo_in_a_mirror(dataset: Dataset, tmp_path: Path) -> None:
    def mirrored(photo: Photo) -> Photo:
        return Photo(photo.id, encode(to_pixels(photo.jpeg, SIZE)[:, ::-1]), photo.count, "g")

    photos = [mirrored(photo) for photo in dataset.photos("train")]
    turned = open_dataset(write_packed(tmp_path / "data", photos, photos[:1], size=SIZE))
    original, mirror = compute(dataset, tmp_path / "a"), compute(turned, tmp_path / "b")
    np.testing.assert_array_equal(original.views[:, 1], mirror.views[:, 0])
    np.testing.assert_array_equal(original.views[:, 0], mirror.views[:, 1])
    assert not np.array_equal(original.views[:, 0], original.views[:, 1])


def test_the_second_call_takes_every_chunk_from_disk(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_again(*_: object, **__: object) -> None:
        raise AssertionError("the backbone is run again")

    first = compute(dataset, tmp_path)
    assert len(chunk_files(tmp_path)) == 3
    monkeypatch.setattr(features, "_in_onnx_runtime", not_again)
    second = compute(dataset, tmp_path, should_stop=StopAt(1))
    np.testing.assert_array_equal(second.views, first.views)
    assert (second.ids, second.groups) == (first.ids, first.groups)


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
    expected = first.views + np.float16(1000)
    expected[4:8] = first.views[4:8]
    np.testing.assert_array_equal(second.views, expected)
    np.testing.assert_array_equal(np.load(files[1]), first.views[4:8])


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
    np.testing.assert_array_equal(resumed.views, compute(dataset, tmp_path / "whole").views)


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
    assert test.ids == ["00010", "00011", "00012", "00013"]
    expected = [halves(photo) for photo in dataset.photos("test")]
    np.testing.assert_allclose(test.views[:, 0], expected, atol=0.1)


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
        return {features_key(dataset, "resnet50", weights, SIZE, p) for p in ("float32", "int8")}

    seen = keys()
    getsource = inspect.getsource
    for changed in (preprocess, Backbone):

        def edited(code: object, changed: object = changed) -> str:
            return getsource(code) + ("# edited" if code is changed else "")  # type: ignore[arg-type]

        monkeypatch.setattr(inspect, "getsource", edited)
        seen |= keys()
    assert len(seen) == 6


@pytest.mark.usefixtures("convolved")
def test_int8_features_are_near_those_in_float32(dataset: Dataset, tmp_path: Path) -> None:
    exact = compute(dataset, tmp_path / "float32")
    near = compute(dataset, tmp_path / "int8", precision="int8")
    assert near.ids == exact.ids
    np.testing.assert_allclose(near.views, exact.views, atol=0.02)
    assert not np.array_equal(near.views, exact.views)


@pytest.mark.usefixtures("convolved")
def test_both_sides_run_through_one_int8_model(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_again(*_: object, **__: object) -> None:
        raise AssertionError("quantised again")

    compute(dataset, tmp_path, precision="int8")
    (tmp_path / ".backbone.onnx").unlink()  # stays behind on the machine
    monkeypatch.setattr(features, "quantize_onnx", not_again)
    compute(dataset, tmp_path, side="test", precision="int8")


@pytest.mark.usefixtures("convolved")
@pytest.mark.parametrize("kept", [0, 100, -1])
@pytest.mark.parametrize(
    ("precision", "name"), [("float32", ".backbone.onnx"), ("int8", "backbone-int8.onnx")]
)
def test_a_damaged_model_is_made_again(
    dataset: Dataset, tmp_path: Path, precision: Precision, name: str, kept: int
) -> None:
    first = compute(dataset, tmp_path, precision=precision)
    whole = (tmp_path / name).read_bytes()
    for file in tmp_path.glob("*.onnx"):
        cut(file, kept)
    chunk_files(tmp_path)[-1].unlink()
    second = compute(dataset, tmp_path, precision=precision)
    assert (tmp_path / name).read_bytes() == whole
    np.testing.assert_array_equal(second.views, first.views)


@pytest.mark.usefixtures("convolved")
def test_stopped_anywhere_int8_ends_with_the_same_bytes(dataset: Dataset, tmp_path: Path) -> None:
    def files(folder: Path) -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in folder.iterdir() if file.name[0] != "."}

    asked = StopAt(99)
    compute(dataset, tmp_path / "whole", asked, precision="int8")
    assert asked.asked == 3 + 3 + 5  # two passes of calibration, then the features
    for n in range(1, asked.asked + 1):
        with pytest.raises(StoppedError):
            compute(dataset, tmp_path / f"{n}", StopAt(n), precision="int8")
        compute(dataset, tmp_path / f"{n}", precision="int8")
        assert files(tmp_path / f"{n}") == files(tmp_path / "whole")


def test_int8_is_refused_on_a_cpu_without_vnni(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "has_vnni", lambda: False)
    with pytest.raises(PrecisionError, match=r"^int8 needs a CPU with VNNI.*float32[^\n]*$"):
        compute(dataset, tmp_path / "int8", precision="int8")
    compute(dataset, tmp_path / "float32")


@pytest.mark.usefixtures("convolved")
def test_int8_features_from_another_cpu_are_taken(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = compute(dataset, tmp_path, precision="int8")
    monkeypatch.setattr(features, "has_vnni", lambda: False)
    np.testing.assert_array_equal(compute(dataset, tmp_path, precision="int8").views, first.views)


def test_photos_are_decoded_only_a_little_ahead(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = 0

    def counting(photos: PhotoIndex, rows: range, size: int, *, pinned: bool) -> Tensor:
        nonlocal decoded
        decoded += 1
        return decode(photos, rows, size, pinned=pinned)

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
        compute_features(
            dataset,
            "train",
            backbone,
            tmp_path / precision,
            precision=precision,
            size=SIZE,
            threads=2,
            device=torch.device("cpu"),
            should_stop=never,
        ).views.astype(np.float32)
        for precision in ("float32", "bfloat16")
    )
    difference = np.abs(of_float - of_bfloat).mean() / np.abs(of_float).mean()
    assert 0 < difference < 0.02
    assert backbone.dtype is torch.float32  # the copy was changed, not this one
