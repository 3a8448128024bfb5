import os
import signal
import subprocess
import sys
from pathlib import Path

from synthesized import ROOT

from training.signals import Signals

MANY = """
import os, signal, sys
from training.signals import Signals

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
        assert process.communicate(timeout=20)[0] == "heard\n"
    finally:
        process.kill()
