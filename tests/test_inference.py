import io
import json
import tarfile
from pathlib import Path
from random import Random
from typing import Any

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import LABELS, grey_photo, write_tiny_model

from serving.inference import (
    Model,
    ModelError,
    Prediction,
    RequestError,
    input_fn,
    load_model,
    model_fn,
    output_fn,
    predict_fn,
)

PREDICTION = Prediction(2, 1.9, {"1": 0.1, "2": 0.9})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return model_fn(write_tiny_model(tmp_path_factory.mktemp("model")))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "model")


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_each_count_is_recognised(model: Model, count: int, form: str) -> None:
    assert predict_fn(grey_photo(count, form), model).count == count


def test_the_answer_is_a_distribution_over_the_labels_and_its_mean(model: Model) -> None:
    prediction = predict_fn(grey_photo(3), model)
    assert list(prediction.probabilities) == LABELS
    assert sum(prediction.probabilities.values()) == pytest.approx(1, abs=1e-5)
    mean = sum(int(label) * share for label, share in prediction.probabilities.items())
    assert prediction.expected == pytest.approx(mean, abs=1e-4)


def test_the_count_is_the_label_and_not_its_position(tmp_path: Path) -> None:
    model = model_fn(write_tiny_model(tmp_path, labels=["0", "3", "5"]))
    assert predict_fn(grey_photo(3), model).count == 3


def test_a_broken_photo_is_the_clients_mistake(model: Model) -> None:
    with pytest.raises(RequestError, match="not a readable") as caught:
        predict_fn(b"no photo", model)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "content_type", ["image/jpeg", "image/png", "application/x-image", "Image/JPEG; q=1"]
)
def test_photo_content_types_are_read(content_type: str) -> None:
    assert input_fn(b"photo", content_type) == b"photo"


@pytest.mark.parametrize("content_type", [None, "", "text/plain", "image/", "application/json"])
def test_other_content_types_are_refused_and_the_right_ones_named(content_type: str | None) -> None:
    with pytest.raises(RequestError, match="image/jpeg, image/png, application/x-image") as caught:
        input_fn(b"photo", content_type)
    assert caught.value.status == 415


def test_an_empty_body_is_refused() -> None:
    with pytest.raises(RequestError, match="empty") as caught:
        input_fn(b"", "image/jpeg")
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "accept", [None, "", "*/*", "application/json", "application/*", "text/html, */*;q=0.8"]
)
def test_json_is_the_default_answer(accept: str | None) -> None:
    body, content_type = output_fn(PREDICTION, accept)
    assert content_type == "application/json"
    assert json.loads(body) == {
        "count": 2,
        "expected": 1.9,
        "probabilities": {"1": 0.1, "2": 0.9},
    }


@pytest.mark.parametrize("accept", ["text/csv", "text/*", "Text/CSV;q=1", "text/csv, */*"])
def test_csv_is_one_row(accept: str) -> None:
    assert output_fn(PREDICTION, accept) == ("2,1.9,0.1,0.9\n", "text/csv")


@given(st.text(st.characters(codec="ascii"), max_size=300))
def test_an_accept_header_gets_an_answer_or_406_in_one_line(accept: str) -> None:
    refusals = []
    try:
        assert output_fn(PREDICTION, accept)[1] in ("application/json", "text/csv")
    except RequestError as error:
        refusals.append(error)
    assert all(error.status == 406 and "\n" not in str(error) for error in refusals)


def network_of_other_size(folder: Path) -> None:
    (write_tiny_model(folder / "other", size=12) / "model.onnx").replace(folder / "model.onnx")


def unnormalised_network(folder: Path) -> None:
    network = onnx.load(folder / "model.onnx")
    network.graph.node[-1].op_type = "LogSoftmax"
    onnx.save(network, folder / "model.onnx")


def description(folder: Path, **changes: Any) -> None:
    known = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(known | changes))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "model.json").unlink(), r"model\.json: no such file"),
        (lambda f: (f / "model.json").write_text("{"), r"model\.json: not readable as JSON"),
        (lambda f: (f / "model.json").write_bytes(b"\xff"), r"model\.json: not readable as JSON"),
        (lambda f: (f / "model.json").write_text("[]"), r"model\.json: holds no JSON object"),
        (lambda f: description(f, size="24"), r'"size" is \'24\''),
        (lambda f: description(f, size=0), r'"size" is 0'),
        (lambda f: description(f, labels=None), r'"labels" is None'),
        (lambda f: description(f, labels=["1", "many"]), r'"labels" is'),
        (lambda f: description(f, labels=["1", "1"]), r'"labels" is'),
        (lambda f: description(f, labels=["1", "2"]), r"names 2 labels"),
        (lambda f: (f / "model.onnx").unlink(), r"model\.onnx: no such file"),
        (lambda f: (f / "model.onnx").write_bytes(b"junk"), r"not a usable network"),
        (lambda f: (f / "model.onnx").write_bytes(b""), r"not a usable network"),
        (network_of_other_size, r"not a usable network"),
        (unnormalised_network, r"not probabilities"),
    ],
)
def test_a_damaged_model_folder_is_named_in_one_line(
    folder: Path, damage: Any, message: str
) -> None:
    damage(folder)
    with pytest.raises(ModelError, match=message) as caught:
        model_fn(folder)
    assert "\n" not in str(caught.value)


def packed(folder: Path, archive: Path) -> Path:
    with tarfile.open(archive, "w:gz") as tar:
        for file in sorted(folder.iterdir()):
            tar.add(file, file.name)
    return archive


def test_a_tar_serves_like_its_folder(folder: Path, model: Model) -> None:
    unpacked = load_model(packed(folder, folder.parent / "model.tar.gz"))
    assert predict_fn(grey_photo(4), unpacked) == predict_fn(grey_photo(4), model)


def test_a_tar_that_climbs_out_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "model.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        member = tarfile.TarInfo("../outside.txt")
        member.size = 4
        tar.addfile(member, io.BytesIO(b"gone"))
    with pytest.raises(ModelError, match=r"model\.tar\.gz: not a usable"):
        load_model(archive)
    assert not list(tmp_path.parent.rglob("outside.txt"))


@pytest.mark.parametrize("kept", [0, 5, 200, 400])
def test_a_tar_cut_short_is_refused(folder: Path, kept: int) -> None:
    archive = packed(folder, folder.parent / "model.tar.gz")
    archive.write_bytes(archive.read_bytes()[:kept])
    with pytest.raises(ModelError, match=r"not a usable model\.tar\.gz") as caught:
        load_model(archive)
    assert "\n" not in str(caught.value)


def test_a_tar_with_a_wrong_byte_anywhere_is_refused(folder: Path) -> None:
    text = Random(0).choices("abcdefgh ", k=100_000)
    (folder / "metrics.json").write_text("".join(text))
    archive = packed(folder, folder.parent / "model.tar.gz")
    good = archive.read_bytes()
    for position in range(50, len(good), len(good) // 40):  # 50: past the name and the time
        archive.write_bytes(good[:position] + bytes([good[position] ^ 255]) + good[position + 1 :])
        with pytest.raises(ModelError, match=r"not a usable model\.tar\.gz"):
            load_model(archive)


def test_a_tar_that_lacks_a_file_is_named_by_its_own_path(folder: Path) -> None:
    (folder / "model.onnx").unlink()
    archive = packed(folder, folder.parent / "model.tar.gz")
    with pytest.raises(ModelError, match=rf"^{archive}/model\.onnx: no such file"):
        load_model(archive)


def test_a_path_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nothing: no such model folder"):
        load_model(tmp_path / "nothing")
