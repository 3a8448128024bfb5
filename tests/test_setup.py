"""What set-up says before it downloads anything, and when it installs again."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from rehearsal import setup

PLENTY = 20 * 10**9


class FakeMachine:
    """Programs on the PATH, and what each prints when it is called."""

    def __init__(self, programs: dict[str, str]) -> None:
        self.programs = programs

    def which(self, name: str) -> str | None:
        return name if name in self.programs else None

    def output(self, command: Sequence[str]) -> str:
        return self.programs.get(command[0], "")


COMPLETE = {"python3.11": "Python 3.11.7", "node": "v20.20.2", "npm": "10.8.2"}


def missing(machine: FakeMachine, free_bytes: int | None = PLENTY) -> list[str]:
    python = setup.find_python(machine.which, machine.output)
    return setup.preflight(python, free_bytes, machine.which, machine.output)


def without(name: str) -> FakeMachine:
    return FakeMachine({key: text for key, text in COMPLETE.items() if key != name})


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with two requirement files and an empty .venv."""
    monkeypatch.setattr(setup, "ROOT", tmp_path)
    (tmp_path / ".venv").mkdir()
    (tmp_path / "a.txt").write_text("one==1\n")
    (tmp_path / "b.txt").write_text("two==2\n")
    (tmp_path / "product").write_text("")
    return tmp_path


def is_stale(checkout: Path) -> bool:
    return setup.is_stale("python", ["a.txt", "b.txt"], checkout / "product")


def test_a_complete_machine_lacks_nothing() -> None:
    assert missing(FakeMachine(COMPLETE)) == []


def test_the_running_python_is_taken_when_it_is_the_right_one() -> None:
    machine = FakeMachine({sys.executable: "Python 3.11.1"})
    assert setup.find_python(machine.which, machine.output) == sys.executable


def test_another_python_on_the_path_is_found() -> None:
    machine = FakeMachine({sys.executable: "Python 3.8.18", "python3.11": "Python 3.11.7"})
    assert setup.find_python(machine.which, machine.output) == "python3.11"


@pytest.mark.parametrize("says", ["", "Python 3.12.1", "Python 3.1.1"])
def test_a_python_that_does_not_run_or_is_another_is_missing(says: str) -> None:
    machine = FakeMachine({**COMPLETE, "python3.11": says})
    [line] = missing(machine)
    assert line.startswith("Python 3.11 (this is ")


def test_a_python_that_cannot_make_environments_is_named() -> None:
    machine = FakeMachine(COMPLETE)
    [line] = setup.preflight("python-without-venv", None, machine.which, machine.output)
    assert "python3.11-venv" in line


@pytest.mark.parametrize(
    ("machine", "message"),
    [
        (without("node"), "Node 20 or newer"),
        (FakeMachine({**COMPLETE, "node": "v18.19.1"}), "Node 20 or newer (this is v18.19.1)"),
        (without("npm"), "npm"),
    ],
)
def test_a_missing_program_is_named(machine: FakeMachine, message: str) -> None:
    assert missing(machine) == [message]


def test_a_full_disk_is_named_with_what_is_free() -> None:
    [line] = missing(FakeMachine(COMPLETE), free_bytes=3_210_000_000)
    assert line.startswith("10 GB of free disk (3.2 GB are free in ")


def test_the_disk_does_not_matter_once_installed() -> None:
    assert missing(FakeMachine(COMPLETE), free_bytes=None) == []


def test_all_that_is_missing_is_one_line_before_anything_is_installed(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (*setup.PYTHON_FILES, *setup.NODE_FILES):
        (checkout / name).parent.mkdir(exist_ok=True)
        (checkout / name).write_text("")
    monkeypatch.setattr(setup, "VENV_PYTHON", checkout / ".venv/bin/python")
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr(setup, "output_of", lambda command: "")
    monkeypatch.setattr(setup, "run", lambda *_: pytest.fail("something was installed"))
    with pytest.raises(SystemExit) as caught:
        setup.main([])
    message = str(caught.value)
    assert message.startswith("error: missing: Python 3.11 (this is ")
    assert message.endswith("Node 20 or newer; npm")
    assert "\n" not in message


def test_the_stamp_counts_until_a_file_changes(checkout: Path) -> None:
    assert is_stale(checkout)
    setup.write_stamp("python", ["a.txt", "b.txt"])
    assert not is_stale(checkout)
    (checkout / "b.txt").write_text("two==2.1\n")
    assert is_stale(checkout)


def test_the_stamp_does_not_count_when_what_was_installed_is_gone(checkout: Path) -> None:
    setup.write_stamp("python", ["a.txt", "b.txt"])
    (checkout / "product").unlink()
    assert is_stale(checkout)


def test_a_line_moved_between_files_is_a_change(checkout: Path) -> None:
    setup.write_stamp("python", ["a.txt", "b.txt"])
    (checkout / "a.txt").write_text("one==1\ntwo==2\n")
    (checkout / "b.txt").write_text("")
    assert is_stale(checkout)


@pytest.mark.parametrize("ending", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_installation_leaves_no_stamp(
    ending: type[BaseException], checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "NODE_FILES", ["a.txt"])

    def interrupted(label: str, command: Sequence[str]) -> None:
        raise ending

    monkeypatch.setattr(setup, "run", interrupted)
    setup.write_stamp("node", ["a.txt"])
    with pytest.raises(ending):
        setup.install_node()
    assert not setup.stamp_file("node").exists()


def test_checkov_has_an_environment_of_its_own_made_anew_when_its_list_changes(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[Sequence[str]] = []
    monkeypatch.setattr(setup, "run", lambda label, command: commands.append(command))
    monkeypatch.setattr(setup, "CHECKOV_FILES", ["a.txt"])
    left = checkout / ".venv/checkov/left"
    left.parent.mkdir()
    left.touch()
    setup.install_checkov()
    assert not left.exists(), "what an earlier list brought"
    assert all(str(checkout / ".venv/checkov") in " ".join(command) for command in commands)
    assert "a.txt" in commands[-1]
    assert not setup.is_stale("checkov", ["a.txt"], checkout / "product")
    (checkout / "a.txt").write_text("one==2\n")
    assert setup.is_stale("checkov", ["a.txt"], checkout / "product")


def test_a_failing_command_shows_the_end_of_its_log(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = "print(*range(100), sep='\\n'); print('no such package'); raise SystemExit(3)"
    with pytest.raises(SystemExit) as caught:
        setup.run("Installing", [sys.executable, "-c", script])
    printed = capsys.readouterr().out
    assert "no such package" in printed
    assert "\n50\n" not in printed
    log = checkout / ".venv/setup.log"
    assert str(caught.value) == f"error: Installing failed (exit code 3); the whole log: {log}"
    assert "50" in log.read_text()


def test_away_from_a_terminal_a_command_takes_two_lines(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    setup.run("Installing", [sys.executable, "-c", "print('quiet')"])
    assert capsys.readouterr().out == "Installing …\nInstalling: done in 0:00\n"


def test_help_installs_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rehearsal.setup", "--help"],
        cwd=setup.ROOT,
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert done.stdout.startswith("usage: python3 rehearsal/setup.py [-h]")
    assert "Setting up" not in done.stdout
