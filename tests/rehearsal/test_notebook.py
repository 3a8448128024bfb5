"""The notebook: it runs from top to bottom, and what is committed has the outputs of such a run."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat

from rehearsal.aws.stand_in import ROOT
from rehearsal.notebook import NOTEBOOK
from tests.support.policies import new_calls

PASSING = re.compile(r"\d\d:\d\d:\d\d  |[\d.]+%  ")  # progress; the profile
WORD = re.compile(r"\W*[A-Za-z]{4,}\W*")


def code_cells(file: Path) -> list[Any]:
    notebook: Any = nbformat.read(file, as_version=4)  # type: ignore[no-untyped-call]
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(file: Path) -> str:
    """What its cells print."""
    outputs = [output for cell in code_cells(file) for output in cell.outputs]
    return "".join(output.get("text", "") for output in outputs)


def told(file: Path) -> set[str]:
    """The words that its cells print in each run: without numbers, names, and what depends on when
    one looks."""
    lines = [line for line in printed(file).splitlines() if not PASSING.match(line.strip())]
    return {word for line in lines for word in line.split() if WORD.fullmatch(word)}


def measured(comparison: str) -> list[str]:
    """Where the runs were whose own records `costs compare` shows."""
    lines = [line for line in comparison.splitlines() if "measured: run" in line]
    return [line.split("  ")[0] for line in lines]


def test_the_committed_notebook_has_the_outputs_of_a_whole_run() -> None:
    cells = code_cells(NOTEBOOK)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert all(output.output_type != "error" for cell in cells for output in cell.outputs)
    assert measured(printed(NOTEBOOK)) == ["EC2 spot", "SageMaker managed spot"]
    assert "exact on test" in printed(NOTEBOOK)


def test_the_committed_notebook_is_small_and_knows_no_machine() -> None:
    text = NOTEBOOK.read_text()
    assert len(text) < 1_000_000
    for place in (str(ROOT), str(Path.home()), sys.prefix, "/tmp/", "127.0.0.1"):
        assert place not in text


def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rehearsal.notebook", "--folder", str(tmp_path)]
    with_profile = os.environ | {"AWS_PROFILE": "of-the-user"}  # must not matter
    done = subprocess.run(
        command, cwd=ROOT, env=with_profile, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    ran = tmp_path / "notebook.ipynb"
    assert [cell.source for cell in code_cells(ran)] == [
        cell.source for cell in code_cells(NOTEBOOK)
    ]
    assert measured(printed(ran)) == ["EC2 spot", "SageMaker managed spot"]
    assert told(ran) == told(NOTEBOOK), "write it again: python -m rehearsal.notebook --write"
    assert (tmp_path / "notebook" / "violations.txt").read_text() == "", "AWS would refuse these"
    calls = tmp_path / "notebook" / "calls.csv"
    more, fewer = new_calls(calls, "recorded_notebook_calls.csv")
    assert (more, fewer) == (set(), set()), f"see whether each is right, then copy {calls}"
