"""What a rehearsal starts does not outlive it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from rehearsal.aws import processes as module
from rehearsal.aws.processes import CommandError, Processes

# A parent and a child that both refuse to end when asked.
STUBBORN = "trap '' TERM; (trap '' TERM; echo $BASHPID > child; sleep 600) & wait"


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "END_SECONDS", 0.2)


def start_stubborn(processes: Processes, folder: Path) -> list[int]:
    """Process numbers of the stubborn parent and its child, once both are there."""
    process = processes.start(["bash", "-c", STUBBORN], environment=dict(os.environ), folder=folder)
    child = folder / "child"
    while not (child.exists() and child.read_text().strip()):
        assert process.poll() is None
    return [process.pid, int(child.read_text())]


def running(pids: list[int]) -> list[int]:
    return [
        pid
        for pid in pids
        if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    ]


def test_leaving_ends_everything_children_included(tmp_path: Path) -> None:
    with Processes(tmp_path) as processes:
        pids = start_stubborn(processes, tmp_path)
        assert running(pids) == pids
    assert running(pids) == []


def test_an_error_ends_everything_as_well(tmp_path: Path) -> None:
    pids: list[int] = []
    with pytest.raises(KeyboardInterrupt), Processes(tmp_path) as processes:
        pids = start_stubborn(processes, tmp_path)
        raise KeyboardInterrupt
    assert running(pids) == []


def test_what_a_killed_rehearsal_left_is_ended_by_the_next(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from rehearsal.aws.processes import Processes\n"
        "folder = Path(sys.argv[1])\n"
        "log = folder / 'log'\n"
        "p = Processes(folder).start(['sleep', '600'], environment=dict(os.environ), log=log)\n"
        "print(p.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True)
    left = int(killed.stdout)
    assert running([left]) == [left]
    with Processes(tmp_path):
        assert running([left]) == []


def test_a_process_that_took_over_the_number_is_left_alone(tmp_path: Path) -> None:
    other = subprocess.Popen(["sleep", "600"])
    try:
        gone = {"pid": 2**22 + 1, "created": 0.0}
        taken = {"pid": other.pid, "created": 1.0}
        (tmp_path / "processes.jsonl").write_text(f"{json.dumps(gone)}\n{json.dumps(taken)}\n")
        with Processes(tmp_path):
            assert running([other.pid]) == [other.pid]
    finally:
        other.kill()
        other.wait()


def test_a_second_rehearsal_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    with Processes(tmp_path / "state") as first:
        process = first.start(["sleep", "600"], environment=dict(os.environ))
        with pytest.raises(CommandError, match=f"process {os.getpid()} is already working in"):
            Processes(tmp_path / "state")
        assert process.poll() is None


def test_a_failing_command_is_one_line_with_its_log(tmp_path: Path) -> None:
    with Processes(tmp_path) as processes:
        log = tmp_path / "log"
        with pytest.raises(
            CommandError, match=r"`false` ended with exit code 1: nothing; its output: .*log"
        ):
            processes.run(["false"], environment={"PATH": os.environ["PATH"]}, log=log)


def test_a_frozen_process_is_ended(tmp_path: Path) -> None:
    with Processes(tmp_path) as processes:
        process = processes.start(["sleep", "600"], environment=dict(os.environ))
        psutil.Process(process.pid).suspend()
    assert running([process.pid]) == []


def test_ctrl_c_while_a_process_starts_leaves_it_not_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[psutil.Popen] = []
    start = psutil.Popen

    def interrupted(*arguments: Any, **options: Any) -> psutil.Popen:
        started.append(start(*arguments, **options))
        signal.raise_signal(signal.SIGINT)
        return started[0]

    monkeypatch.setattr(psutil, "Popen", interrupted)
    with pytest.raises(KeyboardInterrupt), Processes(tmp_path) as processes:
        processes.start(["sleep", "600"], environment={"PATH": os.defpath})
    (process,) = started
    assert process.poll() is not None
