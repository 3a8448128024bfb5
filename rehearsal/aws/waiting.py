"""Waiting until a process is ready, for as long as it is busy, however slow this machine is."""

import time
from collections.abc import Callable
from pathlib import Path

import psutil

LOOK_SECONDS = 0.1
IDLE_SECONDS = 60.0  # a starting program computes or reads from the disk all the time
BUSY_SHARE = 0.001  # of that time


class NotReadyError(RuntimeError):
    """A process ended or became idle before it was ready; the message is one line."""


def wait_until(
    ready: Callable[[], bool],
    process: psutil.Popen,
    *,
    name: str,
    log: Path,
    look_seconds: float = LOOK_SECONDS,
) -> None:
    """Ask `ready` every `look_seconds` until it is true.

    Raises NotReadyError, with the last line of `log`, as soon as `process` has ended, and when
    it and its children were idle for IDLE_SECONDS.
    """
    busy, since = -1.0, time.monotonic()
    while not ready():
        now = time.monotonic()
        if process.poll() is not None:
            raise NotReadyError(_told(name, f"ended with exit code {process.returncode}", log))
        used = _cpu_seconds(process)
        if abs(used - busy) > IDLE_SECONDS * BUSY_SHARE:  # less than before: a child has ended
            busy, since = used, now
        elif now - since > IDLE_SECONDS:
            raise NotReadyError(_told(name, f"was idle for {IDLE_SECONDS:.0f} s", log))
        time.sleep(look_seconds)


def last_line(log: Path) -> str:
    """The last line of a log that is not empty."""
    text = log.read_text(errors="replace") if log.exists() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "nothing"


def _told(name: str, happened: str, log: Path) -> str:
    return f"{name} {happened} before it was ready; {log} ends with: {last_line(log)}"


def _cpu_seconds(process: psutil.Popen) -> float:
    """CPU seconds of a process and its children so far."""
    used = 0.0
    try:
        for each in (process, *process.children(recursive=True)):
            times = each.cpu_times()
            used += times.user + times.system + getattr(times, "iowait", 0.0)
    except psutil.NoSuchProcess:
        pass  # the caller notices its end, and counts its children the next time
    return used
