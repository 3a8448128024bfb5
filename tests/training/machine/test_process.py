"""The training process as its machine sees it."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from training.machine import process as module
from training.machine.process import TrainingProcess
from training.settings import INTERRUPTED


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    before = signal.getsignal(signal.SIGUSR1)
    yield
    signal.signal(signal.SIGUSR1, before)


def run(script: str, *folders: Path) -> TrainingProcess:
    return TrainingProcess([sys.executable, "-Sc", script], {"PATH": os.defpath}, *folders)


def ended(script: str) -> str:
    """What is said of a process that ends by itself."""
    process = run(script)
    while process.running():
        time.sleep(0.01)
    process.end()
    return process.failure()


def test_the_last_line_says_why_training_failed() -> None:
    assert ended("print('epoch 1'); raise ValueError('no layers')") == (
        "training ended with exit code 1: ValueError: no layers"
    )


def test_training_that_fails_in_silence_is_said_to() -> None:
    assert ended("raise SystemExit(3)") == "training ended with exit code 3: it printed nothing"


@pytest.mark.parametrize(
    ("number", "words"),
    [
        ("SIGKILL", "was killed, most likely out of memory: take a larger instance type"),
        ("SIGSEGV", "was killed by SIGSEGV"),
    ],
)
def test_what_killed_training_is_said_in_words(number: str, words: str) -> None:
    said = ended(f"import os, signal; os.kill(os.getpid(), signal.{number})")
    assert said == f"training {words}"


def test_bytes_that_are_no_text_do_not_silence_training() -> None:
    said = ended("import os; os.write(1, b'loss \\xff\\n'); raise SystemExit(3)")
    assert said == "training ended with exit code 3: loss \N{REPLACEMENT CHARACTER}"


@dataclass
class Clock:
    now: float = 0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_quiet_lasts_until_a_line_is_printed(clock: Clock, tmp_path: Path) -> None:
    go = tmp_path / "go"
    script = (
        f"import os, time\nwhile not os.path.exists('{go}'): time.sleep(0.01)\nprint('epoch 1')"
    )
    process = run(script)
    clock.now = 500
    assert process.quiet_seconds() == 500
    go.touch()
    while process.running():
        time.sleep(0.01)
    process.end()
    assert process.quiet_seconds() == 0


def test_quiet_lasts_until_a_file_changes(clock: Clock, tmp_path: Path) -> None:
    process = run("import signal; signal.pause()", tmp_path)
    clock.now = 500
    assert process.quiet_seconds() == 500
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "new.pt").touch()
    assert process.quiet_seconds() == 0
    clock.now = 700
    assert process.quiet_seconds() == 200
    process.end()


def test_one_that_still_imports_survives_the_wish_for_a_checkpoint() -> None:
    process = run("import time; time.sleep(60)")
    process.ask_for_checkpoint()
    assert process.stop() == INTERRUPTED  # by SIGTERM
    assert process.end() == -signal.SIGTERM


def test_who_just_finished_is_not_said_to_be_interrupted(tmp_path: Path) -> None:
    script = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n"
    ready = tmp_path / "ready"
    process = run(f"{script}open('{ready}', 'w')\nwhile True: signal.pause()")
    while not ready.exists():
        time.sleep(0.01)
    assert process.stop() == 0
    process.end()
