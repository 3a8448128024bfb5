"""The demo's output: a line for each step, with a progress bar while it runs."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.progress_bar import ProgressBar
from rich.text import Text

NEARLY = 0.97  # a bar is full only when its step is over, even if that takes longer


class Screen:
    """Lines on the terminal, and everything else in `log`; steps may run at the same time."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self._begun = time.monotonic()
        self._lock = threading.Lock()
        self._console = Console(highlight=False, soft_wrap=True)
        self._progress = Progress(
            TextColumn("  {task.description:<58}"),
            _ExpectedBar(),
            _Seconds(),
            console=self._console,
        )

    def __enter__(self) -> "Screen":
        if self._console.is_terminal:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._progress.stop()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._begun

    def say(self, text: str) -> None:
        """Print a line on the terminal, and log it."""
        self.note(text)
        self._console.print(text, markup=False)

    def note(self, text: str) -> None:
        """Log a line."""
        with self._lock, self.log.open("a") as log:
            log.write(f"{self.seconds:6.0f} s  {text}\n")

    @contextmanager
    def step(self, description: str, seconds: float) -> Iterator[TaskID]:
        """A step that is expected to take `seconds` on this machine."""
        task = self._progress.add_task(description, total=seconds)
        self.note(description)
        yield task
        took = self._progress.tasks[task].elapsed or 0.0
        self._progress.update(task, completed=seconds)
        self.note(f"{description}: {took:.0f} s")
        if not self._console.is_terminal:
            last = self._progress.tasks[task].description
            self._console.print(f"  {last:<58} {took:4.0f} s", markup=False)

    def describe(self, task: TaskID, description: str) -> None:
        """Say what a step is doing now."""
        self._progress.update(task, description=description)


class _ExpectedBar(ProgressColumn):
    """A bar that shows elapsed time as a share of the expected time."""

    def render(self, task: Task) -> ProgressBar:
        share = (task.elapsed or 0.0) / (task.total or 1.0)
        return ProgressBar(1.0, 1.0 if task.finished else min(share, NEARLY), width=24)


class _Seconds(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.finished_time or task.elapsed or 0.0:4.0f} s")
