"""The training process as its machine sees it: started, watched, and ended."""

import logging
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from training.settings import INTERRUPTED, seconds

STOP_SECONDS = seconds("STOP", 60)  # for the process to take its snapshot

log = logging.getLogger(__name__)


class TrainingProcess:
    """A running training.train. What it prints is logged; `folders` are where it writes."""

    def __init__(self, command: Sequence[str], environment: dict[str, str], *folders: Path) -> None:
        # Inherited: one that still imports its packages would die of the signal.
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        self._folders = folders
        self._files: set[tuple[Path, int]] = set()
        self._last_line = ""
        self._last_sign = time.monotonic()
        environment = {**environment, "PYTHONUNBUFFERED": "1"}  # lines in their order, at once
        self._process = subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        self._relay = threading.Thread(target=self._log_lines)
        self._relay.start()

    def running(self) -> bool:
        return self._process.poll() is None

    def quiet_seconds(self) -> float:
        """How long it has printed no line and changed no file."""
        files = {(file, modified) for folder in self._folders for file, modified in _times(folder)}
        if files != self._files:
            self._files = files
            self._last_sign = time.monotonic()
        return time.monotonic() - self._last_sign

    def ask_for_snapshot(self) -> None:
        self._process.send_signal(signal.SIGUSR1)

    def stop(self) -> int:
        """Ask the process to leave; returns 0 if it had just finished, else INTERRUPTED.

        Its own exit code tells nothing else: before its imports are done, SIGTERM just kills it.
        """
        self._process.terminate()
        try:
            return 0 if self._process.wait(STOP_SECONDS) == 0 else INTERRUPTED
        except subprocess.TimeoutExpired:
            return INTERRUPTED

    def end(self) -> int:
        """End the process if it still runs, and log its last words; returns its exit code."""
        self._process.kill()  # does nothing to one that has ended
        code = self._process.wait()
        self._relay.join()
        return code

    def failure(self) -> str:
        """Why the process ended, in words, after `end`."""
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
                self._last_sign = time.monotonic()
                if line.strip():
                    self._last_line = line.strip()
                    log.info("train: %s", line.rstrip())


def _times(folder: Path) -> list[tuple[Path, int]]:
    """Every file under `folder` with the time of its last change."""
    found = []
    for file in folder.rglob("*"):
        try:
            found.append((file, file.lstat().st_mtime_ns))
        except FileNotFoundError:
            continue  # removed in the meantime
    return found
