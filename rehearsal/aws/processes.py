"""The processes that a rehearsal starts, none of which outlives it.

Each is the leader of its own session and written to a file, so that what a killed rehearsal
left running is ended by the next one.
"""

import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

import psutil

from rehearsal.aws.waiting import last_line

END_SECONDS = 5.0  # from SIGTERM to SIGKILL
ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class CommandError(RuntimeError):
    """A command of the rehearsal failed; the message is one line."""


class Processes:
    """Starts processes and ends them all on leaving the `with` block."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._record = folder / "processes.jsonl"
        self._end_leftovers()
        self._note(os.getpid())
        self._started: list[psutil.Popen] = []
        self._ended = False

    def __enter__(self) -> "Processes":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended = True
        with _undisturbed():
            for process in reversed([*self._started]):
                self.end(process)
        self._record.unlink(missing_ok=True)

    def start(
        self,
        command: Sequence[str | Path],
        *,
        environment: Mapping[str, str],
        log: Path | None = None,
        folder: Path | None = None,
    ) -> psutil.Popen:
        """Start `command`; its output goes to `log`, or to this terminal.

        Raises CommandError once the `with` block has been left, in a thread that goes on.
        """
        output = log.open("ab") if log else None
        with _signals_later():
            process = psutil.Popen(
                command,
                env=environment,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT if output else None,
                start_new_session=True,
            )
            self._started.append(process)
            self._note(process.pid)
        if output:
            output.close()
        if self._ended:
            self.end(process)
            raise CommandError("everything has ended")
        return process

    def run(
        self,
        command: Sequence[str | Path],
        *,
        environment: Mapping[str, str],
        log: Path | None = None,
        folder: Path | None = None,
    ) -> None:
        """Start `command` and wait for its end. Raises CommandError when the command fails."""
        process = self.start(command, environment=environment, log=log, folder=folder)
        try:
            code = process.wait()
        finally:
            self.end(process)
            self._started.remove(process)  # its number may be another's by now
        if code != 0:  # None where another thread has seen it end
            words = " ".join(str(word) for word in command)
            seen = f": {last_line(log)}; its output: {log}" if log else ""
            raise CommandError(f"`{words}` ended with exit code {code}{seen}")

    def end(self, process: psutil.Popen, seconds: float = END_SECONDS) -> None:
        """End `process` and all its descendants: SIGTERM, and after `seconds` SIGKILL."""
        _end_session(process.pid, seconds)
        process.wait()

    def freeze(self, process: psutil.Popen) -> None:
        """Stop `process` and all its descendants where they are."""
        for member in _members(process.pid):
            with suppress(psutil.NoSuchProcess):
                member.suspend()

    def thaw(self, process: psutil.Popen) -> None:
        """Let all that was frozen go on."""
        for member in _members(process.pid):
            with suppress(psutil.NoSuchProcess):
                member.resume()

    def kill(self, process: psutil.Popen) -> None:
        """SIGKILL to `process` and all its descendants."""
        self.freeze(process)  # or one of them would start another, or write its last words
        for member in _members(process.pid):
            with suppress(psutil.NoSuchProcess):
                member.kill()
        process.wait()

    def _note(self, pid: int) -> None:
        with self._record.open("a") as record, suppress(psutil.NoSuchProcess):
            created = psutil.Process(pid).create_time()
            record.write(json.dumps({"pid": pid, "created": created}) + "\n")

    def _end_leftovers(self) -> None:
        """End what a killed owner of this record left running.

        Raises CommandError while the owner, the first in the record, is still at work.
        """
        if not self._record.exists():
            return
        owner, *started = map(json.loads, self._record.read_text().splitlines())
        if _is_running(owner):
            raise CommandError(
                f"process {owner['pid']} already works in {self._record.parent.parent}: "
                "wait for its end, or choose another folder"
            )
        for process in started:
            if _is_running(process):
                _end_session(process["pid"])
        self._record.unlink()


@contextmanager
def _signals_later() -> Iterator[None]:
    """A Ctrl-C between a process's start and the note of it would leave it running."""
    if threading.current_thread() is not threading.main_thread():
        yield  # where no signal arrives
        return
    came: list[int] = []
    heard = [number for number in ENDINGS if signal.getsignal(number) != signal.SIG_IGN]
    before = [signal.signal(number, lambda number, _: came.append(number)) for number in heard]
    try:
        yield
    finally:
        for number, handler in zip(heard, before, strict=True):
            signal.signal(number, handler)
    for late in came:
        signal.raise_signal(late)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """A second Ctrl-C would leave running what the first has not ended yet."""
    if threading.current_thread() is not threading.main_thread():
        yield  # where no signal arrives
        return
    before = [signal.signal(number, signal.SIG_IGN) for number in ENDINGS]
    try:
        yield
    finally:
        for number, handler in zip(ENDINGS, before, strict=True):
            signal.signal(number, handler)


def _is_running(noted: dict[str, float]) -> bool:
    """Whether the noted process still runs; the same number may be another one by now."""
    try:
        return psutil.Process(int(noted["pid"])).create_time() == noted["created"]
    except psutil.NoSuchProcess:
        return False


def _members(leader: int) -> list[psutil.Process]:
    """Every process of the session of `leader`."""
    return [process for process in psutil.process_iter() if _session(process) == leader]


def _end_session(leader: int, seconds: float = END_SECONDS) -> None:
    """SIGTERM, then SIGKILL, to every process of the session of `leader`."""
    members = _members(leader)
    for process in members:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGCONT)  # a frozen process hears nothing
    _, alive = psutil.wait_procs(members, timeout=seconds)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive)


def _session(process: psutil.Process) -> int | None:
    try:
        return os.getsid(process.pid)
    except (ProcessLookupError, PermissionError):
        return None
