import json
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import accuracy, accuracy_by_eye
from benchmarks.accuracy_answers import answers_of, open_sides


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, bins_tar: Path) -> Path:
    folder = tmp_path_factory.mktemp("by_eye")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accuracy, "save_weights", lambda arch, folder: None)
        accuracy.prepare(folder, bins_tar)
    return folder


def compare(monkeypatch: pytest.MonkeyPatch, folder: Path, *more: str) -> None:
    monkeypatch.setattr(sys, "argv", ["accuracy_by_eye", "--folder", str(folder), *more])
    accuracy_by_eye.main()


def test_both_are_judged_on_the_photos_that_were_counted(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, held_out = open_sides(folder)
    by_eye = dict.fromkeys(held_out.ids[1:], 3)
    monkeypatch.setattr(accuracy_by_eye, "BY_EYE", folder / "by_eye.json")
    accuracy_by_eye.BY_EYE.write_text(json.dumps(by_eye))
    (folder / "ideas").mkdir()
    np.save(answers_of(folder, "knows"), np.eye(5)[held_out.counts - 1])

    compare(monkeypatch, folder, "--try", "knows")
    first, eye, network = capsys.readouterr().out.splitlines()
    threes = (held_out.counts[1:] == 3).mean()
    assert first.startswith(f"{len(held_out) - 1} photos")
    assert eye.startswith(f"by eye: exact {threes:.1%}")
    assert network.startswith("knows: exact 100.0%")


def test_answers_that_are_not_there_are_one_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, held_out = open_sides(folder)
    monkeypatch.setattr(accuracy_by_eye, "BY_EYE", tmp_path / "by_eye.json")
    accuracy_by_eye.BY_EYE.write_text(json.dumps(dict.fromkeys(held_out.ids, 2)))
    with pytest.raises(SystemExit, match=r"^error: .*none.npy"):
        compare(monkeypatch, folder, "--try", "none")
    with pytest.raises(SystemExit, match=r"^error: no data set in"):
        compare(monkeypatch, tmp_path)
