from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.learn.checkpoint import (
    Best,
    Checkpoint,
    CheckpointWriter,
    checkpoints_folder,
    copy_tensors,
    load_checkpoint,
    machine_details,
    save_checkpoint,
)

SETTINGS = {"arch": "resnet50", "epochs": 30}


def checkpoint(epoch: int, settings: dict[str, Any] = SETTINGS) -> Checkpoint:
    return Checkpoint(
        settings=settings,
        machine=machine_details(),
        epoch=epoch,
        step=7,
        losses=[0.5, 0.25],
        network={"weight": torch.full((2, 3), float(epoch))},
        average={},
        optimizer={"state": {0: {"step": torch.tensor(4.0)}}},
        schedule={"last_epoch": epoch},
        scaler={},
        best=Best(epoch=0, validation_loss=1.0, products_loss=1.0, network={}),
        history=[{"epoch": number + 1} for number in range(epoch)],
    )


def newest(folder: Path, settings: dict[str, Any] = SETTINGS) -> int | None:
    """The epoch of what a run would go on from."""
    loaded = load_checkpoint(folder, settings)
    return loaded["epoch"] if loaded else None


def test_a_checkpoint_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "new", checkpoint(3))
    loaded = load_checkpoint(tmp_path / "new", SETTINGS)
    assert loaded
    assert torch.equal(loaded["network"]["weight"], torch.full((2, 3), 3.0))
    assert {**loaded, "network": None} == {**checkpoint(3), "network": None}


def test_without_a_checkpoint_training_starts_from_scratch(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path, SETTINGS) is None
    assert load_checkpoint(tmp_path / "nowhere", SETTINGS) is None


def test_the_newest_wins_and_two_are_kept(tmp_path: Path) -> None:
    for epoch in (1, 9, 10, 11, 100):
        save_checkpoint(tmp_path, checkpoint(epoch))
        assert newest(tmp_path) == epoch
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "checkpoint-00011-0000007.pt",
        "checkpoint-00100-0000007.pt",
    ]


def saved_bytes(folder: Path, epoch: int) -> tuple[Path, bytes]:
    file = save_checkpoint(folder, checkpoint(epoch))
    return file, file.read_bytes()


@pytest.mark.parametrize("share", [0, 0.001, 0.3, 0.7, 0.999])
def test_a_newest_that_was_cut_off_gives_way_to_the_older(
    tmp_path: Path, share: float, capsys: pytest.CaptureFixture[str]
) -> None:
    save_checkpoint(tmp_path, checkpoint(4))
    file, content = saved_bytes(tmp_path, 5)
    file.write_bytes(content[: int(len(content) * share)])
    assert newest(tmp_path) == 4
    assert "checkpoint-00005-0000007.pt is damaged, trying an older one" in capsys.readouterr().err


@settings(deadline=None)
@given(st.data())
def test_whatever_is_damaged_a_run_goes_on_from_what_was_saved(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("checkpoints")
    save_checkpoint(folder, checkpoint(4))
    file, content = saved_bytes(folder, 5)
    damaged = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(damaged)
    loaded = load_checkpoint(folder, SETTINGS)
    assert loaded
    epoch = 5 if damaged == content else 4
    assert torch.equal(loaded["network"]["weight"], torch.full((2, 3), float(epoch)))
    assert loaded["history"] == checkpoint(epoch)["history"]


@pytest.mark.parametrize("content", [b"no model at all", b'{"epoch": 5}', b"PK\x03\x04", bytes(99)])
def test_a_file_that_is_no_checkpoint_is_passed_over(tmp_path: Path, content: bytes) -> None:
    save_checkpoint(tmp_path, checkpoint(4))
    (tmp_path / "checkpoint-00005-0000007.pt").write_bytes(content)
    assert newest(tmp_path) == 4


def test_two_damaged_checkpoints_mean_start_from_scratch(tmp_path: Path) -> None:
    for epoch in (4, 5):
        save_checkpoint(tmp_path, checkpoint(epoch)).write_bytes(b"")
    assert load_checkpoint(tmp_path, SETTINGS) is None


def test_an_older_one_stays_when_a_damaged_one_is_passed_over(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, checkpoint(20)).write_bytes(b"")
    for epoch in (10, 15):
        save_checkpoint(tmp_path, checkpoint(epoch))
    (tmp_path / "checkpoint-00015-0000007.pt").write_bytes(b"")
    assert newest(tmp_path) == 10


def test_checkpoints_of_other_settings_are_not_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_checkpoint(tmp_path, checkpoint(29, {**SETTINGS, "epochs": 40}))
    assert newest(tmp_path) is None
    assert "has other settings or layers and is not used" in capsys.readouterr().err


def test_checkpoints_of_networks_with_other_layers_are_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, checkpoint(28))
    with monkeypatch.context() as earlier:
        earlier.setattr("training.learn.checkpoint.LAYOUT", 1)
        save_checkpoint(tmp_path, checkpoint(29))
    assert newest(tmp_path) == 28


def test_later_checkpoints_of_other_settings_do_not_push_out_ours(tmp_path: Path) -> None:
    for epoch in (38, 39):
        save_checkpoint(tmp_path, checkpoint(epoch, {**SETTINGS, "epochs": 40}))
    save_checkpoint(tmp_path, checkpoint(1))
    assert newest(tmp_path) == 1


def test_a_kill_while_a_checkpoint_is_written_leaves_the_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, checkpoint(4))

    def killed(file: Path, _: Path) -> None:
        file.write_bytes(file.read_bytes()[:-100])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, checkpoint(5))
    assert [file.name for file in tmp_path.glob("*.pt")] == ["checkpoint-00004-0000007.pt"]
    assert newest(tmp_path) == 4

    monkeypatch.undo()
    save_checkpoint(tmp_path, checkpoint(5))  # over what the kill left behind
    assert newest(tmp_path) == 5


def test_a_partial_file_is_never_taken_even_when_it_is_whole(tmp_path: Path) -> None:
    file = save_checkpoint(tmp_path, checkpoint(5))
    file.rename(tmp_path / f".{file.name}.partial")
    assert load_checkpoint(tmp_path, SETTINGS) is None


def test_a_checkpoint_on_its_way_is_not_changed_by_the_next_step(tmp_path: Path) -> None:
    taken = checkpoint(3)
    writer = CheckpointWriter(tmp_path)
    writer.save(taken)
    taken["network"]["weight"].fill_(99)
    taken["losses"].append(99.0)
    writer.wait()
    loaded = load_checkpoint(tmp_path, SETTINGS)
    assert loaded
    assert loaded["network"]["weight"].tolist() == [[3.0] * 3] * 2
    assert loaded["losses"] == [0.5, 0.25]


def test_checkpoints_are_written_one_after_the_other(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path)
    for epoch in range(1, 6):
        writer.save(checkpoint(epoch))
    writer.wait()
    assert not writer.busy
    assert newest(tmp_path) == 5
    assert len(list(tmp_path.iterdir())) == 2


def test_a_checkpoint_that_cannot_be_written_is_told_with_the_next(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    writer = CheckpointWriter(tmp_path / "file")
    writer.save(checkpoint(1))
    with pytest.raises(OSError, match="file"):
        writer.save(checkpoint(2))


def test_copies_share_nothing_and_keep_the_layout_of_their_tensors() -> None:
    pixels = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    tree = {"a": [pixels, {"b": 1.5}], "c": "text"}
    copied = copy_tensors(tree)
    assert copied["c"] == "text"
    first = copied["a"][0]
    assert torch.equal(first, pixels)  # type: ignore[arg-type]
    assert first.stride() == pixels.stride()  # type: ignore[union-attr]
    pixels.zero_()
    assert first.abs().sum() > 0  # type: ignore[union-attr,operator]


def test_each_run_has_a_folder_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = checkpoints_folder(tmp_path, SETTINGS, inputs="photos", processes=1)
    assert mine == checkpoints_folder(tmp_path, dict(SETTINGS), inputs="photos", processes=1)
    mine.mkdir()
    assert mine == checkpoints_folder(tmp_path, SETTINGS, inputs="photos", processes=1)
    assert capsys.readouterr().err == ""
    others = {
        checkpoints_folder(tmp_path, {**SETTINGS, "epochs": 31}, inputs="photos", processes=1),
        checkpoints_folder(tmp_path, SETTINGS, inputs="other photos", processes=1),
        checkpoints_folder(tmp_path, SETTINGS, inputs="photos", processes=2),
    }
    assert len(others | {mine}) == 4
    assert capsys.readouterr().err.count(f"({mine.name}): this run starts from scratch") == 3


def test_a_checkpoint_of_another_machine_is_used_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = checkpoint(4)
    save_checkpoint(tmp_path, taken)
    assert newest(tmp_path) == 4
    assert capsys.readouterr().err == ""
    taken["machine"]["threads"] = 64
    save_checkpoint(tmp_path, taken)
    assert newest(tmp_path) == 4
    assert "from another machine (threads 64, here " in capsys.readouterr().err
