import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.serving import accuracy as serving_accuracy
from benchmarks.serving.accuracy import compare_native, describe_int8, judge_int8, main
from benchmarks.training.measure import BenchmarkError
from serving.container.artifact import load_model
from tests.support.packed import draw_photos, write_packed
from tests.support.tiny_model import grey_photo, write_tiny_model

DIFFERENCE = {"value": -0.002, "low": -0.006, "high": 0.001}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    photos = draw_photos(60)
    return write_packed(tmp_path / "data", photos[:45], photos[45:])


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(serving_accuracy, "has_vnni", lambda: True)
    folder = write_tiny_model(tmp_path / "model", labels=["1", "2", "3"])
    description = json.loads((folder / "model.json").read_text())
    description["settings"] = {"validation_fraction": 0.3, "decision": "argmax"}
    (folder / "model.json").write_text(json.dumps(description))
    return folder


def test_both_variants_are_judged_against_float32(
    model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reduced: list[bool] = []

    def worse_with_fewer_bits(
        float_model: Path, int8_model: Path, _: object, *, reduce_range: bool
    ) -> None:
        reduced.append(reduce_range)
        scale = 0.5 if reduce_range else 1.0
        write_tiny_model(int8_model.parent / "tiny", labels=["1", "2", "3"], scale=scale)
        (int8_model.parent / "tiny" / "model.onnx").rename(int8_model)

    monkeypatch.setattr(serving_accuracy, "quantize_onnx", worse_with_fewer_bits)
    found = judge_int8(model, data)
    assert reduced == [False, True]
    same, worse = found.values()
    assert same["cross_entropy_difference"]["value"] == 0
    assert same["served"]
    assert worse["cross_entropy_difference"]["value"] > 0.1
    assert not worse["served"]


def test_the_table_has_a_row_for_each_variant() -> None:
    row = {"cross_entropy_difference": DIFFERENCE, "exact_difference": DIFFERENCE, "served": True}
    text = describe_int8({"8 bits": row})
    assert "| 8 bits | −0.0020 (−0.0060 to +0.0010) | −0.2 (−0.6 to +0.1) | yes |" in text


def test_packing_a_smooth_photo_changes_next_to_nothing(model: Path, tmp_path: Path) -> None:
    files = []
    for count in (1, 2, 3):
        files.append(tmp_path / f"{count}.jpg")
        files[-1].write_bytes(grey_photo(count))
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    smooth = compare_native(load_model(model), files, packed_size=32)
    assert smooth["photos"] == 3
    assert smooth["mean difference of a pixel, of 255"] < 2
    assert smooth["same most probable count, %"] == 100
    Image.fromarray(noise).save(tmp_path / "noise.png")
    rough = compare_native(load_model(model), [tmp_path / "noise.png"], packed_size=32)
    assert rough["mean difference of a pixel, of 255"] > 2


def test_without_vnni_nothing_is_judged(
    model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving_accuracy, "has_vnni", lambda: False)
    with pytest.raises(BenchmarkError, match="VNNI"):
        judge_int8(model, data)


def test_a_model_without_its_settings_is_one_line(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving_accuracy, "has_vnni", lambda: True)
    bare = write_tiny_model(tmp_path / "bare")
    with pytest.raises(SystemExit, match=r"^error: .*does not say how it was trained"):
        main(["--model", str(bare), "--data", str(data)])
