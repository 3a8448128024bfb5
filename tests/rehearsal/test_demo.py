"""The demo's path in a smaller size: stacks, data, an interrupted machine, endpoint, page."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from rehearsal import demo
from rehearsal.aws.group import RehearsedGroups
from rehearsal.aws.stand_in import ROOT
from tests.support.policies import new_calls

SMALL = ["--synthetic", "--photos", "240", "--epochs", "40"]

# Where a boot script of a real machine, pip, the AWS command line, PyTorch, Matplotlib and their
# like would leave something. Not the whole disk, and nothing that only others may write: a desktop
# changes its own files all the time.
SYSTEM = [Path(folder) for folder in ("/etc", "/opt", "/srv", "/usr", "/var/lib", "/var/log")]
HOME = [".aws", ".cache/pip", ".cache/torch", ".cache/huggingface", ".cache/matplotlib"]
HOME += [".config/matplotlib", ".local/lib", ".local/bin"]


def files_outside(scratch: Path) -> dict[str, tuple[int, int]]:
    """Path to modification time and size of every file outside `scratch` that might be touched."""
    found: dict[str, tuple[int, int]] = {}
    for folder in (*SYSTEM, *(Path.home() / name for name in HOME), ROOT):
        if not os.access(folder, os.W_OK):
            continue
        for parent, inner, names in os.walk(folder):
            # Bytecode of what is imported for the first time is no trace of a machine.
            inner[:] = [
                name for name in inner if name != "__pycache__" and Path(parent, name) != scratch
            ]
            for name in names:
                file = os.path.join(parent, name)
                try:
                    state = os.lstat(file)
                except FileNotFoundError:
                    continue
                found[file] = (state.st_mtime_ns, state.st_size)
    return found


@pytest.fixture
def _environment() -> Iterator[None]:
    """The demo points this process's AWS variables at the stand-in."""
    before = dict(os.environ)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    os.environ.clear()
    os.environ.update(before)
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_environment")
def test_the_whole_path_from_stacks_to_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "of-the-user")  # must not matter
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://localhost:1")
    zones = ROOT / "cdk.context.json"  # of the user's account, if there is one
    zones_before = zones.exists() and zones.read_bytes()
    changed: set[str] = set()
    run = RehearsedGroups.run

    def watched_run(group: RehearsedGroups, **settings: object) -> None:
        before = files_outside(tmp_path)
        run(group, **settings)  # type: ignore[arg-type]
        after = files_outside(tmp_path)
        changed.update(name for name, _ in before.items() ^ after.items())

    monkeypatch.setattr(RehearsedGroups, "run", watched_run)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    demo.main([*SMALL, "--folder", str(tmp_path), "--interrupt-at", "features:1", "epoch:2"])

    assert changed == set(), "a rehearsed machine wrote outside its own folder"
    assert (zones.exists() and zones.read_bytes()) == zones_before
    output = capfd.readouterr().out
    assert len(output.splitlines()) < 30, "one screen"
    assert re.search(r"240 synthetic photos, about \d min \d+ s on this machine", output)
    assert "worked on it: interrupted, interrupted, succeeded" in output
    assert "of features were computed, none twice" in output
    assert "every request conforms to AWS's own models" in output
    assert "resumed after epoch" in output
    page = tmp_path / "run" / "report.html"
    assert f"Page:     {page}" in output
    log = (tmp_path / "run" / "demo.log").read_text()
    assert "$ python -m training.launch resume" in log
    assert "GetServiceQuota" in log, "what the commands print"
    html = page.read_text()
    assert html.count("data:image/jpeg") == 10
    assert "95 % interval" in html
    assert "original project, SageMaker" in html
    calls = tmp_path / "run" / "calls.csv"
    more, fewer = new_calls(calls, "recorded_calls.csv")
    assert (more, fewer) == (set(), set()), f"see whether each is right, then copy {calls}"
    assert processes_of(tmp_path) == []


@pytest.mark.parametrize("moment", ["$ python -m data_prep download", "boot: training"])
def test_ctrl_c_leaves_no_process_behind(tmp_path: Path, moment: str) -> None:
    log = tmp_path / "run" / "demo.log"
    process = subprocess.Popen(
        [sys.executable, "-m", "rehearsal.demo", *SMALL, "--folder", tmp_path],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    while not (log.exists() and moment in log.read_text()):
        assert process.poll() is None, f"the demo ended before: {process.communicate()}"
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    rest, _ = process.communicate()
    assert process.returncode == 1
    assert "stopped, nothing is left running" in rest
    assert "Traceback" not in rest
    assert processes_of(tmp_path) == []


def processes_of(folder: Path) -> list[str]:
    """Commands of the processes that have anything to do with `folder`."""
    found = []
    for process in psutil.process_iter():
        try:
            words = [*process.cmdline(), *process.environ().values(), process.cwd()]
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if process.pid != os.getpid() and any(str(folder) in word for word in words):
            found.append(" ".join(process.cmdline()))
    return found
