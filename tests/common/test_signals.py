import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from common.files import ROOT
from common.signals import Signals

MANY = """
import os, signal, sys
from common.signals import Signals

signals = Signals(signal.SIGTERM)
print("ready", flush=True)
while not os.path.exists(sys.argv[1]):
    signals.seen(signal.SIGTERM)
print("heard" if signals.seen(signal.SIGTERM) else "deaf")
"""


def test_a_signal_is_noted_until_it_is_forgotten() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    try:
        signals = Signals(signal.SIGUSR1)
        assert not signals.seen(signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert signals.seen(signal.SIGUSR1)
        signals.forget(signal.SIGUSR1)
        assert not signals.seen(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("early", [True, False])
def test_a_program_ends_at_once_whether_asked_before_or_after(
    early: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGUSR1)
    try:
        signals = Signals(signal.SIGUSR1)
        if early:
            os.kill(os.getpid(), signal.SIGUSR1)
        with pytest.raises(SystemExit) as end:
            signals.exit_at_once(signal.SIGUSR1, code=75, message="stopped")
            assert not early
            os.kill(os.getpid(), signal.SIGUSR1)
        assert end.value.code == 75
        assert capsys.readouterr().err == "stopped\n"
        os.kill(os.getpid(), signal.SIGUSR1)  # a second one does not disturb the end
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_signals_that_come_while_one_is_handled_do_not_block(tmp_path: Path) -> None:
    stop = tmp_path / "stop"
    process = subprocess.Popen(
        [sys.executable, "-c", MANY, stop], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    for _ in range(20_000):
        process.send_signal(signal.SIGTERM)
    stop.touch()
    try:
        assert process.communicate(timeout=600)[0] == "heard\n"
    finally:
        process.kill()
