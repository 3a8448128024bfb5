import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import accuracy, accuracy_answers
from benchmarks.accuracy_answers import answers_of, judge, open_sides


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, bins_tar: Path) -> Path:
    """A data set, and two tries that are each sure, one half of the photos right and the other
    half wrong by one."""
    folder = tmp_path_factory.mktemp("answers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accuracy, "save_weights", lambda arch, folder: None)
        accuracy.prepare(folder, bins_tar)
    _, photos = open_sides(folder)
    (folder / "ideas").mkdir()
    right = photos.counts - 1
    wrong = np.where(right == 4, 3, right + 1)
    even = np.arange(len(photos)) % 2 == 0
    for name, classes in (
        ("even", np.where(even, right, wrong)),
        ("odd", np.where(even, wrong, right)),
    ):
        sure = np.where(even == (name == "even"), 0.9, 0.6)[:, None]
        probabilities = np.full((len(photos), 5), (1 - sure) / 4)
        np.put_along_axis(probabilities, classes[:, None], sure, axis=1)
        np.save(answers_of(folder, name), np.log(probabilities).astype(np.float32))
    return folder


def command(monkeypatch: pytest.MonkeyPatch, folder: Path, *names: str) -> None:
    monkeypatch.setattr(sys, "argv", ["accuracy_answers", "--folder", str(folder), *names])
    accuracy_answers.main()


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    _, photos = open_sides(folder)
    monkeypatch.setattr(accuracy_answers, "ROWS", file)
    lines: list[dict[str, Any]] = [
        {"try": name, "minutes": 4.5, **judge(np.load(answers_of(folder, name)), photos)}
        for name in ("even", "odd")
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def test_tries_that_err_on_different_photos_are_better_together(
    folder: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command(monkeypatch, folder, "even", "odd")
    even, odd, both = map(json.loads, rows.read_text().splitlines())
    assert both["exact"]["value"] == 1
    assert max(even["exact"]["value"], odd["exact"]["value"]) < 0.7
    assert both["flags"] == "accuracy_answers even odd"
    assert both["minutes"] == 9


def test_a_try_without_answers_or_row_is_one_line(
    folder: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit, match=r"^error: .*none\.npy"):
        command(monkeypatch, folder, "even", "none")
    rows.write_text("")
    with pytest.raises(SystemExit, match=r"^error: rows\.jsonl has no row of 'even'"):
        command(monkeypatch, folder, "even", "odd")
