"""What of a run's checkpoints the next machine gets."""

import os
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import EndpointConnectionError

from common.storage import download_prefix, list_keys
from training.runs.checkpoint_store import CheckpointStore


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
    (folder / "checkpoint-00001.pt").write_text("epoch 1")
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
    change(folder / "checkpoint-00001.pt", "epoch 1, again")
    (folder / "checkpoint-00002.pt").write_text("epoch 2")
    assert store.store(1) == 2
    assert content(s3, "checkpoints/r1/001/checkpoint-1.pt") == "epoch 1, again"


def test_a_file_still_being_written_stays_here(s3: Any, folder: Path) -> None:
    (folder / ".checkpoint-00002.pt.partial").write_text("half an ep")
    (folder / "features-ab" / ".train-00001.npy.partial").write_text("half a chunk")
    assert store_of(s3, folder).store(1) == 2
    assert not [key for key in list_keys(s3, "bins", "") if "partial" in key]


def test_each_attempt_writes_under_its_own_prefix(s3: Any, folder: Path, tmp_path: Path) -> None:
    store_of(s3, folder).store(1)
    second = store_of(s3, tmp_path / "second")
    second.restore()
    change(tmp_path / "second" / "checkpoint-00001.pt", "epoch 1, by the second machine")
    assert second.store(2) == 1, "what came from the first attempt is not uploaded again"
    assert content(s3, "checkpoints/r1/001/checkpoint-0.pt") == "epoch 1"
    assert content(s3, "checkpoints/r1/002/checkpoint-0.pt") == "epoch 1, by the second machine"


def test_of_two_attempts_files_the_later_one_is_restored(s3: Any, tmp_path: Path) -> None:
    for attempt in (2, 10, 1):
        (tmp_path / str(attempt)).mkdir()
        (tmp_path / str(attempt) / "checkpoint-00001.pt").write_text(f"attempt {attempt}")
        store_of(s3, tmp_path / str(attempt)).store(attempt)
    assert store_of(s3, tmp_path / "next").restore() == 1
    assert files(tmp_path / "next") == {"checkpoint-00001.pt": "attempt 10"}


def test_another_run_s_checkpoints_are_left_alone(s3: Any, folder: Path, tmp_path: Path) -> None:
    store_of(s3, folder, "r10").store(1)
    assert store_of(s3, tmp_path / "second", "r1").restore() == 0


def test_a_checkpoint_that_training_removes_meanwhile_is_passed_over(
    s3: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = s3.upload_file

    def remove_then_upload(file: str, *arguments: Any, **more: Any) -> None:
        if file.endswith(".pt"):
            Path(file).unlink()
        upload(file, *arguments, **more)

    monkeypatch.setattr(s3, "upload_file", remove_then_upload)
    assert store_of(s3, folder).store(1) == 1
    assert list_keys(s3, "bins", "") == ["checkpoints/r1/001/features-ab/train-00000.npy"]


def test_of_many_checkpoints_the_bucket_and_the_next_machine_have_the_last_two(
    s3: Any, folder: Path, tmp_path: Path
) -> None:
    store = store_of(s3, folder)
    store.store(1)
    for epoch in range(2, 8):
        (folder / f"checkpoint-{epoch - 1:05d}.pt").unlink()
        (folder / f"checkpoint-{epoch:05d}.pt").write_text(f"epoch {epoch}")
        store.store(1)
    keys = [key for key in list_keys(s3, "bins", "") if "/checkpoint-" in key]
    assert keys == ["checkpoints/r1/001/checkpoint-0.pt", "checkpoints/r1/001/checkpoint-1.pt"]
    store_of(s3, tmp_path / "second").restore()
    found = {
        name: text for name, text in files(tmp_path / "second").items() if "checkpoint" in name
    }
    assert found == {"checkpoint-00006.pt": "epoch 6", "checkpoint-00007.pt": "epoch 7"}


def test_checkpoints_of_two_folders_are_kept_apart(s3: Any, folder: Path, tmp_path: Path) -> None:
    for other in ("checkpoints-a", "checkpoints-b"):
        (folder / other).mkdir()
        for epoch in (1, 2):
            (folder / other / f"checkpoint-{epoch:05d}.pt").write_text(f"{other} {epoch}")
    store_of(s3, folder).store(1)
    store_of(s3, tmp_path / "second").restore()
    assert files(tmp_path / "second") == files(folder)


def test_the_newest_checkpoints_are_those_of_the_last_attempts(s3: Any, tmp_path: Path) -> None:
    for attempt, epochs in ((1, (3, 4)), (2, (5,)), (3, (6,))):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        for epoch in epochs:
            (folder / f"checkpoint-{epoch:05d}.pt").write_text(f"attempt {attempt}")
        store_of(s3, folder).store(attempt)
    store_of(s3, tmp_path / "next").restore()
    assert files(tmp_path / "next") == {
        "checkpoint-00005.pt": "attempt 2",
        "checkpoint-00006.pt": "attempt 3",
    }


def test_an_upload_that_breaks_off_leaves_the_older_checkpoint(
    s3: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_of(s3, folder)
    store.store(1)
    upload, broken = s3.upload_file, [True]

    def break_off(*arguments: Any, **more: Any) -> None:
        if broken[0]:
            raise EndpointConnectionError(endpoint_url="https://s3")
        upload(*arguments, **more)

    monkeypatch.setattr(s3, "upload_file", break_off)
    (folder / "checkpoint-00002.pt").write_text("epoch 2")
    for _ in range(3):
        with pytest.raises(EndpointConnectionError):
            store.store(1)
    broken[0] = False
    store.store(1)
    assert content(s3, "checkpoints/r1/001/checkpoint-0.pt") == "epoch 1"
    assert content(s3, "checkpoints/r1/001/checkpoint-1.pt") == "epoch 2"
