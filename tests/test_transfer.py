"""What of a run's checkpoints the next machine gets."""

import os
from pathlib import Path
from typing import Any

import boto3
import pytest

from training.transfer import CheckpointStore, download_prefix, list_keys


@pytest.fixture
def s3(aws: None) -> Any:
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket="bins")
    return s3


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The checkpoint folder of a first machine."""
    folder = tmp_path / "first"
    (folder / "features-ab").mkdir(parents=True)
    (folder / "features-ab" / "train-00000.npy").write_text("features")
    (folder / "snapshot-00001.pt").write_text("epoch 1")
    return folder


def store_of(s3: Any, folder: Path, run_id: str = "r1") -> CheckpointStore:
    return CheckpointStore(s3, "bins", run_id, folder)


def content(s3: Any, key: str) -> str:
    text: str = s3.get_object(Bucket="bins", Key=key)["Body"].read().decode()
    return text


def files(folder: Path) -> dict[str, str]:
    return {
        file.relative_to(folder).as_posix(): file.read_text()
        for file in folder.rglob("*")
        if file.is_file()
    }


def change(file: Path, text: str) -> None:
    """Write `file` as if a second later."""
    later = file.stat().st_mtime_ns + 10**9
    file.write_text(text)
    os.utime(file, ns=(later, later))


def test_a_prefix_is_copied_with_its_folders(s3: Any, tmp_path: Path) -> None:
    for key in ("datasets/bins/manifest.json", "datasets/bins/more/a.tar", "datasets/other/b.tar"):
        s3.put_object(Bucket="bins", Key=key, Body=key.encode())
    assert download_prefix(s3, "bins", "datasets/bins/", tmp_path / "data") == 2
    assert set(files(tmp_path / "data")) == {"manifest.json", "more/a.tar"}


def test_a_new_run_has_nothing_to_restore(s3: Any, tmp_path: Path) -> None:
    assert store_of(s3, tmp_path).restore() == 0


def test_the_next_machine_has_what_the_first_stored(s3: Any, folder: Path, tmp_path: Path) -> None:
    assert store_of(s3, folder).store(1) == 2
    assert store_of(s3, tmp_path / "second").restore() == 2
    assert files(tmp_path / "second") == files(folder)


def test_only_new_and_changed_files_are_uploaded(s3: Any, folder: Path) -> None:
    store = store_of(s3, folder)
    store.store(1)
    assert store.store(1) == 0
    change(folder / "snapshot-00001.pt", "epoch 1, again")
    (folder / "snapshot-00002.pt").write_text("epoch 2")
    assert store.store(1) == 2
    assert content(s3, "checkpoints/r1/001/snapshot-00001.pt") == "epoch 1, again"


def test_a_file_still_being_written_stays_here(s3: Any, folder: Path) -> None:
    (folder / ".snapshot-00002.pt.partial").write_text("half an ep")
    (folder / "features-ab" / ".train-00001.npy.partial").write_text("half a chunk")
    assert store_of(s3, folder).store(1) == 2
    assert not [key for key in list_keys(s3, "bins", "") if "partial" in key]


def test_each_attempt_writes_under_its_own_prefix(s3: Any, folder: Path, tmp_path: Path) -> None:
    store_of(s3, folder).store(1)
    second = store_of(s3, tmp_path / "second")
    second.restore()
    change(tmp_path / "second" / "snapshot-00001.pt", "epoch 1, by the second machine")
    assert second.store(2) == 1, "what came from the first attempt is not uploaded again"
    assert content(s3, "checkpoints/r1/001/snapshot-00001.pt") == "epoch 1"
    assert content(s3, "checkpoints/r1/002/snapshot-00001.pt") == "epoch 1, by the second machine"


def test_of_two_attempts_files_the_later_one_is_restored(s3: Any, tmp_path: Path) -> None:
    for attempt in (2, 10, 1):
        (tmp_path / str(attempt)).mkdir()
        (tmp_path / str(attempt) / "snapshot-00001.pt").write_text(f"attempt {attempt}")
        store_of(s3, tmp_path / str(attempt)).store(attempt)
    assert store_of(s3, tmp_path / "next").restore() == 1
    assert files(tmp_path / "next") == {"snapshot-00001.pt": "attempt 10"}


def test_another_run_s_checkpoints_are_left_alone(s3: Any, folder: Path, tmp_path: Path) -> None:
    store_of(s3, folder, "r10").store(1)
    assert store_of(s3, tmp_path / "second", "r1").restore() == 0


def test_a_snapshot_that_training_removes_meanwhile_is_passed_over(
    s3: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = s3.upload_file

    def remove_then_upload(file: str, *arguments: Any) -> None:
        if file.endswith(".pt"):
            Path(file).unlink()
        upload(file, *arguments)

    monkeypatch.setattr(s3, "upload_file", remove_then_upload)
    assert store_of(s3, folder).store(1) == 1
    assert list_keys(s3, "bins", "") == ["checkpoints/r1/001/features-ab/train-00000.npy"]
