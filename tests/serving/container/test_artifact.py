import io
import json
import tarfile
from pathlib import Path
from random import Random
from typing import Any

import onnx
import pytest

from serving.container import artifact
from serving.container.artifact import Model, ModelError, load_model
from serving.container.inference import count_photo
from tests.support.tiny_model import grey_photo, write_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load_model(write_tiny_model(tmp_path_factory.mktemp("model")))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "model")


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
        (lambda f: description(f, labels=["1", "02"]), r'"labels" is'),
        (lambda f: description(f, int8=True), r'"int8" is True'),
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
        load_model(folder)
    assert "\n" not in str(caught.value)


def packed(folder: Path, archive: Path) -> Path:
    with tarfile.open(archive, "w:gz") as tar:
        for file in sorted(folder.iterdir()):
            tar.add(file, file.name)
    return archive


def test_a_tar_serves_like_its_folder(folder: Path, model: Model) -> None:
    unpacked = load_model(packed(folder, folder.parent / "model.tar.gz"))
    assert count_photo(grey_photo(4), unpacked) == count_photo(grey_photo(4), model)


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


def test_a_tar_with_a_header_that_makes_no_sense_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "model.tar.gz"
    with tarfile.open(archive, "w:gz", format=tarfile.PAX_FORMAT) as tar:
        odd = tarfile.TarInfo("model.json")
        odd.pax_headers = {"GNU.sparse.size": "many"}
        tar.addfile(odd, io.BytesIO())
    with pytest.raises(ModelError, match="not a usable model"):
        load_model(archive)


def test_a_tar_that_lacks_a_file_is_named_by_its_own_path(folder: Path) -> None:
    (folder / "model.onnx").unlink()
    archive = packed(folder, folder.parent / "model.tar.gz")
    with pytest.raises(ModelError, match=rf"^{archive}/model\.onnx: no such file"):
        load_model(archive)


def test_a_tar_with_a_folder_around_its_files_says_where_they_must_be(folder: Path) -> None:
    outer = folder.parent / "outer"
    outer.mkdir()
    folder.rename(outer / "model")
    archive = packed(outer, folder.parent / "model.tar.gz")
    with pytest.raises(ModelError, match="must be at the root: pack them with `tar") as caught:
        load_model(archive)
    assert "in the folder 'model'" in str(caught.value)


def test_a_path_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nothing: no such model folder"):
        load_model(tmp_path / "nothing")


def test_a_tar_that_would_fill_the_disk_is_refused_before_it_does(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = packed(folder, folder.parent / "model.tar.gz")
    monkeypatch.setattr(artifact, "LARGEST_MODEL", 100)
    with pytest.raises(ModelError, match="holds over 100 bytes"):
        load_model(archive)


def with_int8(folder: Path, *, served: bool) -> Path:
    """A model whose int8 variant would count one item more."""
    write_tiny_model(folder / "other", labels=["1", "2", "3", "4", "5"], scale=2.0)
    (folder / "other" / "model.onnx").replace(folder / "model-int8.onnx")
    description(folder, int8={"served": served})
    return folder


@pytest.mark.parametrize(
    ("precision", "served", "vnni", "expected"),
    [
        ("auto", True, True, "int8"),
        ("auto", True, False, "float32"),
        ("auto", False, True, "float32"),
        ("float32", True, True, "float32"),
        ("int8", True, False, "int8"),
    ],
)
def test_int8_serves_where_it_is_as_good_and_exact(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    served: bool,
    vnni: bool,
    expected: str,
) -> None:
    monkeypatch.setattr(artifact, "has_vnni", lambda: vnni)
    loaded = load_model(with_int8(folder, served=served), precision=precision)
    assert loaded.precision == expected
    assert count_photo(grey_photo(2), loaded).count == (4 if expected == "int8" else 2)


def test_int8_of_a_model_that_has_none_is_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match="has no int8 variant, serve it in float32"):
        load_model(folder, precision="int8")


def test_an_int8_network_that_is_named_and_not_there_is_missed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifact, "has_vnni", lambda: True)
    description(folder, int8={"served": True})
    with pytest.raises(ModelError, match=r"model-int8\.onnx: no such file"):
        load_model(folder)


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        ("flags\t\t: fpu avx2 avx512_vnni amx_int8", True),
        ("flags\t\t: fpu avx2 avx_vnni", True),
        ("flags\t\t: fpu avx2 avx512f", False),
        ("flags\t\t: fpu avx2 not_avx_vnni_but_longer", False),
        (None, False),
    ],
)
def test_vnni_is_one_of_the_flags_that_linux_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, info: str | None, expected: bool
) -> None:
    monkeypatch.setattr(artifact, "CPU_INFO", tmp_path / "cpuinfo")
    if info is not None:
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{info}\n")
    assert artifact.has_vnni() is expected
