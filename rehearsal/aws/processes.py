"""The processes that a rehearsal starts, none of which outlives it.

Each is the leader of its own session and written to a file, so that what a killed rehearsal
left running is ended by the next one.
"""

import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import psutil

from rehearsal.aws.waiting import last_line

END_SECONDS = 5.0  # from SIGTERM to SIGKILL
Handler = Callable[[int, FrameType | None], None] | signal.Handlers
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

    def __exit__(self, *_: object) -> None:
        self._ended = True
        # A second Ctrl-C would leave running what the first has not ended yet.
        with _handled_by(signal.SIG_IGN):
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

        Raises CommandError in a thread that continues after the `with` block was left.
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
            raise CommandError("the rehearsal has ended")
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
            self._started.remove(process)  # its id may be another process's by now
        if code != 0:  # None when another thread has waited for it
            words = " ".join(str(word) for word in command)
            seen = f": {last_line(log)}; its output: {log}" if log else ""
            raise CommandError(f"`{words}` ended with exit code {code}{seen}")

    def end(self, process: psutil.Popen, seconds: float = END_SECONDS) -> None:
        """End `process` and all its descendants: SIGTERM, and SIGKILL after `seconds`."""
        _end_session(process.pid, seconds)
        process.wait()

    def freeze(self, process: psutil.Popen) -> None:
        """Stop `process` and all its descendants where they are."""
        _send(_members(process.pid), signal.SIGSTOP)

    def thaw(self, process: psutil.Popen) -> None:
        """Let everything that was frozen continue."""
        _send(_members(process.pid), signal.SIGCONT)

    def kill(self, process: psutil.Popen) -> None:
        """Send SIGKILL to `process` and all its descendants."""
        self.freeze(process)  # otherwise one of them could start another, or still write
        _send(_members(process.pid), signal.SIGKILL)
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
                f"process {owner['pid']} is already working in {self._record.parent.parent}: "
                "wait until it ends, or choose another folder"
            )
        for process in started:
            if _is_running(process):
                _end_session(process["pid"])
        self._record.unlink()


@contextmanager
def _signals_later() -> Iterator[None]:
    """Delay signals: one between a process's start and its record would leave it running."""
    came: list[int] = []
    with _handled_by(lambda number, _: came.append(number)):
        yield
    for late in came:
        signal.raise_signal(late)


@contextmanager
def _handled_by(handler: Handler) -> Iterator[None]:
    """Let `handler` receive the signals that end a program, unless they are ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield  # no signal arrives in this thread
        return
    heard = [number for number in ENDINGS if signal.getsignal(number) != signal.SIG_IGN]
    before = [signal.signal(number, handler) for number in heard]
    try:
        yield
    finally:
        for number, usual in zip(heard, before, strict=True):
            signal.signal(number, usual)


def _is_running(noted: dict[str, float]) -> bool:
    """Whether the noted process still runs; another process may have its id by now."""
    try:
        return psutil.Process(int(noted["pid"])).create_time() == noted["created"]
    except psutil.NoSuchProcess:
        return False


def _members(leader: int) -> list[psutil.Process]:
    """Every process of the session of `leader`."""
    return [process for process in psutil.process_iter() if _session(process) == leader]


def _end_session(leader: int, seconds: float = END_SECONDS) -> None:
    """Send SIGTERM, and after `seconds` SIGKILL, to every process of the session of `leader`."""
    members = _members(leader)
    _send(members, signal.SIGTERM, signal.SIGCONT)  # a frozen process would not receive SIGTERM
    _, alive = psutil.wait_procs(members, timeout=seconds)
    _send(alive, signal.SIGKILL)
    psutil.wait_procs(alive)


def _send(processes: Sequence[psutil.Process], *signals: signal.Signals) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            for number in signals:
                process.send_signal(number)


def _session(process: psutil.Process) -> int | None:
    try:
        return os.getsid(process.pid)
    except (ProcessLookupError, PermissionError):
        return None
