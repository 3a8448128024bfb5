"""What set-up says before it downloads anything, and when it installs again."""

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
from packaging.utils import canonicalize_name

from rehearsal import setup

PLENTY = 20 * 10**9
LIMIT = 60.0  # seconds, which only a test that fails comes to


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
    """A checkout in which nothing is installed, with one input for each folder."""
    monkeypatch.setattr(setup, "ROOT", tmp_path)
    monkeypatch.setattr(setup, "VENV_PYTHON", tmp_path / ".venv/bin/python")
    monkeypatch.setattr(setup, "STOPPED", threading.Event())
    for folder, files in setup.INPUTS.items():
        (tmp_path / folder).mkdir(exist_ok=True)
        for file in files:
            (tmp_path / file).parent.mkdir(exist_ok=True)
            (tmp_path / file).write_text(f"{file}==1\n")
    return tmp_path


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
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr(setup, "output_of", lambda command: "")
    monkeypatch.setattr(setup, "install", lambda *_: pytest.fail("something was installed"))
    with pytest.raises(SystemExit) as caught:
        setup.main([])
    message = str(caught.value)
    assert message.startswith("error: missing: Python 3.11 (this is ")
    assert message.endswith("Node 20 or newer; npm")
    assert "\n" not in message


def test_a_folder_is_complete_until_an_input_changes(checkout: Path) -> None:
    assert setup.is_stale("node_modules")
    setup.write_stamp("node_modules")
    assert not setup.is_stale("node_modules")
    (checkout / "package.json").write_text("2")
    assert setup.is_stale("node_modules")


def test_a_line_moved_between_inputs_is_a_change(checkout: Path) -> None:
    setup.write_stamp("node_modules")
    (checkout / "package.json").write_text("")
    (checkout / "package-lock.json").write_text("package-lock.json==1\npackage.json==1\n")
    assert setup.is_stale("node_modules")


def test_a_complete_checkout_asks_the_machine_nothing(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in setup.INPUTS:
        setup.write_stamp(folder)
    setup.VENV_PYTHON.parent.mkdir()
    setup.VENV_PYTHON.touch()
    monkeypatch.setattr(setup, "output_of", lambda command: pytest.fail("a program was called"))
    setup.main([])
    assert capsys.readouterr().out == ""


def test_python_packages_bring_checkov_along_whose_folder_they_empty(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    for name in ("install_python", "install_checkov", "install_node"):
        monkeypatch.setattr(setup, name, lambda name=name: made.append(name))
    monkeypatch.setattr(setup, "make_venv", lambda python: made.append("make_venv"))
    setup.install([".venv"], "python3.11")
    assert made[0] == "make_venv"
    assert sorted(made[1:]) == ["install_checkov", "install_python"]


def test_an_environment_is_made_anew_by_the_python_that_it_came_from(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupted installation leaves packages that look complete, and links to a Python."""
    half_installed = checkout / ".venv/lib/half.dist-info"
    half_installed.mkdir(parents=True)
    commands: list[Sequence[str]] = []
    monkeypatch.setattr(setup, "run", commands.append)
    monkeypatch.setattr(setup, "find_uv", lambda which, output: "uv")
    setup.make_venv(sys.executable)
    assert not half_installed.exists()
    assert commands == [[sys._base_executable, "-m", "venv", str(checkout / ".venv")]]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("version", "used"),
    [("uv 0.13.9 (x86_64)", True), ("uv 1.0.0", True), ("uv 0.7.22", False), ("", False)],
)
def test_the_uv_on_the_path_is_used_if_it_is_new_enough(version: str, used: bool) -> None:
    machine = FakeMachine({"uv": version})
    assert (setup.find_uv(machine.which, machine.output) == "uv") is used


def test_pip_gets_the_version_and_hashes_of_uv_alone() -> None:
    lines = setup.pin("uv", (setup.ROOT / "requirements.txt").read_text()).splitlines()
    assert lines[0].startswith("uv==")
    assert len(lines) > 1
    assert all(line.startswith("    --hash=sha256:") for line in lines[1:])


@pytest.mark.parametrize("in_cache", [True, False])
def test_the_network_is_asked_only_for_what_no_cache_has(
    in_cache: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[Sequence[str]] = []

    def succeeds(command: Sequence[str]) -> bool:
        commands.append(command)
        return in_cache

    monkeypatch.setattr(setup, "succeeds", succeeds)
    monkeypatch.setattr(setup, "run", commands.append)
    setup.sync("requirements.txt")
    assert ["--offline" in command for command in commands] == [True, False][: 2 - in_cache]
    assert all("--require-hashes" in command for command in commands)


@pytest.mark.parametrize("locked", ["requirements.txt", ".ci/checkov.txt"])
def test_a_lock_file_has_what_is_asked_for_with_hashes_and_no_addresses(locked: str) -> None:
    text = (setup.ROOT / locked).read_text()
    asked = (setup.ROOT / locked).with_suffix(".in").read_text()
    versions = re.findall(r"^([\w.-]+)==(\S+).*\\\n    --hash=sha256:", text, re.MULTILINE)
    assert len(versions) == len(re.findall("^[a-z]", text, re.MULTILINE))
    pinned = {(canonicalize_name(name), version) for name, version in versions}
    for name, version in re.findall(r"^([\w.-]+)(?:\[.*\])?==(\S+)", asked, re.MULTILINE):
        assert (canonicalize_name(name), version) in pinned, "run `make lock`"
    assert "://" not in text


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_an_interruption_ends_every_process_with_its_children(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = checkout / "child"

    def endless() -> None:
        setup.run(["sh", "-c", "sleep 1000 & echo $! > child; wait"])

    def interrupted() -> None:
        while not (child.exists() and child.read_text().strip()):
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(setup, "RUNNING", [])
    with pytest.raises(KeyboardInterrupt):
        setup.run_side_by_side({"packages": endless, "checkov": interrupted})
    assert all(process.poll() is not None for process in setup.RUNNING)
    left, deadline = int(child.read_text()), time.monotonic() + LIMIT
    while is_running(left):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("name", ["install_node", "install_checkov", "make_venv"])
def test_what_is_being_installed_has_no_stamp(
    name: str, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in setup.INPUTS:
        setup.write_stamp(folder)

    def broken_off(*_: object) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(setup, "run", broken_off)
    monkeypatch.setattr(setup, "succeeds", broken_off)
    with pytest.raises(KeyboardInterrupt):
        getattr(setup, name)(*([sys.executable] if name == "make_venv" else []))
    folders = {"install_node": "node_modules", "install_checkov": ".venv/checkov"}
    assert setup.is_stale(folders.get(name, ".venv"))


def test_nothing_starts_any_more_after_an_interruption(checkout: Path) -> None:
    setup.STOPPED.set()
    assert not setup.succeeds(["sleep", "1000"])


@pytest.mark.parametrize("writable", [True, False])
def test_caches_are_in_the_checkout_where_the_home_folder_is_read_only(
    writable: bool, checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.write_text("") if not writable else home.mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    monkeypatch.setenv("NPM_CONFIG_CACHE", "as it was")
    setup.keep_caches_here()
    assert setup.cache_folder().is_relative_to(checkout / ".cache") is not writable
    assert (os.environ["NPM_CONFIG_CACHE"] == "as it was") is writable


def test_a_failing_command_shows_the_end_of_its_log(checkout: Path) -> None:
    script = "print(*range(100), sep='\\n'); print('no such package'); raise SystemExit(3)"
    command = [sys.executable, "-c", script]
    with pytest.raises(setup.InstallError) as caught:
        setup.run(command)
    *tail, last = str(caught.value).splitlines()
    assert "no such package" in tail
    assert "50" not in tail
    assert last.endswith(f"failed; its output: {setup.log_of(command)}")
    assert "50" in setup.log_of(command).read_text().splitlines()


def test_away_from_a_terminal_a_step_takes_one_line(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    setup.run_side_by_side({"checkov": lambda: setup.run(["true"])})
    assert re.fullmatch(r"Installed checkov in \d+:\d\d\n", capsys.readouterr().out)


def test_help_installs_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rehearsal.setup", "--help"],
        cwd=setup.ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.stdout.startswith("usage: python3 rehearsal/setup.py [-h]")
    assert "Setting up" not in done.stdout


def test_telemetry_is_off_before_onnx_runtime_is_imported() -> None:
    """As the variable is read at the import."""
    (imported,) = [modules for modules in setup.IMPORTED if "onnxruntime" in modules]
    before, _, _ = imported.partition("onnxruntime")
    script = f"import {before.rstrip(', ')}, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=setup.ROOT, env=environment, capture_output=True
    )
    assert done.stdout.strip() == b"1", done.stderr
