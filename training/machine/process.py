"""Starts, watches and ends the training process of a machine."""

import logging
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from training.settings import INTERRUPTED, seconds

STOP_SECONDS = seconds("STOP", 60)  # for the process to save its checkpoint

log = logging.getLogger(__name__)


class TrainingProcess:
    """A running training.train, which writes to `folders`. Its output is logged."""

    def __init__(self, command: Sequence[str], environment: dict[str, str], *folders: Path) -> None:
        # The process inherits this: while it imports its packages, the signal would kill it.
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        self._folders = folders
        self._files: set[tuple[Path, int]] = set()
        self._last_line = ""
        self._last_activity = time.monotonic()
        environment = {**environment, "PYTHONUNBUFFERED": "1"}  # each line is logged at once
        self._process = subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        self._logger = threading.Thread(target=self._log_lines)
        self._logger.start()

    def running(self) -> bool:
        return self._process.poll() is None

    def quiet_seconds(self) -> float:
        """Return for how long the process has printed no line and changed no file."""
        files = {(file, modified) for folder in self._folders for file, modified in _times(folder)}
        if files != self._files:
            self._files = files
            self._last_activity = time.monotonic()
        return time.monotonic() - self._last_activity

    def ask_for_checkpoint(self) -> None:
        self._process.send_signal(signal.SIGUSR1)

    def stop(self) -> int:
        """Ask the process to exit; return 0 if it had just finished, else INTERRUPTED.

        Its exit code means nothing more: while it imports its packages, SIGTERM kills it.
        """
        self._process.terminate()
        try:
            return 0 if self._process.wait(STOP_SECONDS) == 0 else INTERRUPTED
        except subprocess.TimeoutExpired:
            return INTERRUPTED

    def end(self) -> int:
        """Kill the process if it still runs, and log its last lines; return its exit code."""
        self._process.kill()  # no effect on a process that has ended
        code = self._process.wait()
        self._logger.join()
        return code

    def failure(self) -> str:
        """Return a message that says why the process failed; only after `end`."""
        code = self._process.returncode
        if code == -signal.SIGKILL:
            return "training was killed, most likely out of memory: take a larger instance type"
        if code < 0:
            return f"training was killed by {signal.Signals(-code).name}"
        return f"training ended with exit code {code}: {self._last_line or 'it printed nothing'}"

    def _log_lines(self) -> None:
        assert self._process.stdout
        with self._process.stdout as lines:
            for line in lines:
                self._last_activity = time.monotonic()
                if line.strip():
                    self._last_line = line.strip()
                    log.info("train: %s", line.rstrip())


def _times(folder: Path) -> list[tuple[Path, int]]:
    """Return every file under `folder` with its modification time, in nanoseconds."""
    found = []
    for file in folder.rglob("*"):
        try:
            found.append((file, file.lstat().st_mtime_ns))
        except FileNotFoundError:
            continue  # deleted since the listing
    return found
