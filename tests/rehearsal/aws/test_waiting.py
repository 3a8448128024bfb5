"""What is alive is waited for, and what is dead is said at once."""

import sys
import time
from pathlib import Path

import psutil
import pytest

from rehearsal.aws import waiting
from rehearsal.aws.waiting import NotReadyError, wait_until

BUSY = "while True: pass"


def start(script: str, log: Path) -> psutil.Popen:
    with log.open("w") as output:
        return psutil.Popen([sys.executable, "-c", script], stdout=output, stderr=output)


def test_a_process_that_ends_is_said_at_once_with_the_last_line_of_its_log(tmp_path: Path) -> None:
    process = start("raise SystemExit('Address already in use')", tmp_path / "log")
    with pytest.raises(NotReadyError) as caught:
        wait_until(lambda: False, process, name="the server", log=tmp_path / "log")
    assert str(caught.value) == (
        "the server ended with exit code 1 before it was ready; "
        f"{tmp_path / 'log'} ends with: Address already in use"
    )


@pytest.mark.parametrize(
    "script",
    [BUSY, f"import subprocess, sys; subprocess.run([sys.executable, '-c', {BUSY!r}])"],
    ids=["itself", "its child"],
)
def test_a_process_that_works_is_waited_for_however_long_it_takes(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "IDLE_SECONDS", 2)
    begun = time.monotonic()
    process = start(script, tmp_path / "log")
    try:
        wait_until(
            lambda: time.monotonic() - begun > 4, process, name="the server", log=tmp_path / "log"
        )
    finally:
        for one in (*process.children(), process):
            one.kill()
        process.wait()


def test_a_process_that_does_nothing_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "IDLE_SECONDS", 0.5)
    process = start("print('ready?', flush=True); import time; time.sleep(600)", tmp_path / "log")
    with pytest.raises(NotReadyError, match=r"was idle for 0 s .* ends with: ready\?"):
        wait_until(lambda: False, process, name="the server", log=tmp_path / "log")
    process.kill()
    process.wait()
