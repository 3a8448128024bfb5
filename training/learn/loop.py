"""All steps of a run: progress, metrics, snapshots, and leaving when asked to."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from tqdm import tqdm

from common.signals import Signals, StoppedError
from training.learn.batch import Examples
from training.learn.checkpoint import SnapshotWriter
from training.learn.events import write_events
from training.learn.loss_warnings import warnings_of
from training.learn.metric_line import metric_line
from training.learn.profile import profiled
from training.learn.trainer import Trainer

EVENTS_SECONDS = 10.0  # between two writings of TensorBoard's events


class Saving:
    """When a snapshot is due: every `seconds`, on SIGUSR1, and on SIGTERM before leaving."""

    def __init__(self, folder: Path, seconds: float, signals: Signals) -> None:
        self._writer = SnapshotWriter(folder)
        self._seconds, self._signals = seconds, signals
        self._saved = time.monotonic()

    def after_step(self, trainer: Trainer) -> None:
        """Save if it is time to. Raises StoppedError after SIGTERM, with the snapshot on disk."""
        # A signal reaches the processes between different steps: they leave after the same one.
        stopping = trainer.world.any(self._signals.seen(signal.SIGTERM))
        asked = stopping or self._signals.seen(signal.SIGUSR1)
        due = time.monotonic() - self._saved >= self._seconds and not self._writer.busy
        if (asked or due) and trainer.world.first:
            self._signals.forget(signal.SIGUSR1)
            self._writer.save(trainer.snapshot())
            self._saved = time.monotonic()
        if stopping:
            self.wait()
            raise StoppedError

    def finish(self, trainer: Trainer) -> None:
        """Save the end of training, so that what comes after it can be interrupted as well."""
        if trainer.world.first:
            self._writer.save(trainer.snapshot())
        self.wait()

    def wait(self) -> None:
        """Until the snapshot on its way is on disk."""
        self._writer.wait()


class Record:
    """metrics.jsonl and TensorBoard's events, by the first process alone."""

    def __init__(self, trainer: Trainer, output: Path) -> None:
        self._trainer, self._output = trainer, output
        self._file = output / "metrics.jsonl"
        self._events_written = time.monotonic()
        if trainer.world.first:
            self._file.write_text("".join(json.dumps(line) + "\n" for line in trainer.history))

    def add(self, line: dict[str, Any]) -> None:
        """Take up the last line of the history."""
        if not self._trainer.world.first:
            return
        with self._file.open("a") as stream:
            stream.write(json.dumps(line) + "\n")
        if self._trainer.finished or time.monotonic() - self._events_written >= EVENTS_SECONDS:
            write_events(self._output / "events", self._trainer.history)
            self._events_written = time.monotonic()


class Progress:
    """The line on the terminal, and the seconds and dollars since the last measurement."""

    def __init__(self, trainer: Trainer, dollars_an_hour: float, started: float) -> None:
        """`started` is when this process was, by time.monotonic()."""
        total = trainer.settings.epochs * trainer.steps
        taken = trainer.epoch * trainer.steps + trainer.step
        self._bar = tqdm(
            total=total,
            initial=taken,
            desc=trainer.settings.mode,
            unit="step",
            # What is said here, tqdm does not ask its environment for.
            disable=not trainer.world.first or "TQDM_DISABLE" in os.environ,
        )
        self._trainer, self._dollars_an_hour = trainer, dollars_an_hour
        self._spent = trainer.history[-1].get("dollars", 0.0) if trainer.history else 0.0
        self._begun, self._measured = started, time.monotonic()
        self._before = self._so_far()
        self._told: set[str] = set()
        # On a terminal the bar says enough.
        self._in_log = trainer.world.first and not sys.stderr.isatty()

    def after_step(self, loss: float) -> None:
        words = {"loss": f"{loss:.3f}"}
        if self._trainer.history:
            words["accuracy"] = f"{self._trainer.history[-1]['validation_accuracy']:.1%}"
        loading, computing, photos = self._since()
        words["photos/s"] = f"{photos / max(loading + computing, 1e-9):.1f}"
        if self._dollars_an_hour:
            words["$"] = f"{self.dollars():.4f}"
        self._bar.set_postfix(words, refresh=False)
        self._bar.update()

    def dollars(self) -> float:
        """What the run cost so far, this process and, by its own account, those before it."""
        return self._spent + (time.monotonic() - self._begun) / 3600 * self._dollars_an_hour

    def times(self) -> dict[str, float]:
        """What it took since the last call: in metrics.jsonl, but in no comparison of runs."""
        now = time.monotonic()
        loading, computing, photos = self._since()
        times = {
            "seconds": now - self._measured,
            "loading_seconds": loading,
            "computing_seconds": computing,
            "photos_per_second": photos / max(loading + computing, 1e-9),
        }
        if self._dollars_an_hour:
            times["dollars"] = self.dollars()
        self._measured, self._before = now, self._so_far()
        return {name: round(value, 4) for name, value in times.items()}

    def _so_far(self) -> tuple[float, float, int]:
        """Seconds of loading and of computing, and photos, of this process."""
        trainer = self._trainer
        return trainer.loading_seconds, trainer.computing_seconds, trainer.photos

    def _since(self) -> tuple[float, float, int]:
        """The same since the last measurement."""
        loading, computing, photos = self._so_far()
        before = self._before
        return loading - before[0], computing - before[1], photos - before[2]

    def tell(self, line: Mapping[str, Any]) -> None:
        """Write the measurement, the last one, to a log, and what the losses warn of, once."""
        if self._in_log:
            tqdm.write(metric_line([*self._trainer.history[:-1], line]), file=sys.stderr)
        for warning in warnings_of(self._trainer.history):
            if warning not in self._told and self._trainer.world.first:
                self._told.add(warning)
                tqdm.write(f"warning: {warning}", file=sys.stderr)

    def close(self) -> None:
        self._bar.close()


def measure_if_due(trainer: Trainer, validation: Examples, saving: Saving) -> dict[str, Any] | None:
    """Call it after each step, and before the first: an interruption may have left it undone.

    Returns the line of metrics.jsonl, or None. Raises StoppedError with the snapshot on disk.
    """
    if not trainer.measurement_due:
        return None
    try:
        return trainer.measure(validation)
    except StoppedError:
        saving.after_step(trainer)
        raise


def train(
    trainer: Trainer,
    validation: Examples,
    output: Path,
    saving: Saving,
    *,
    dollars_an_hour: float = 0.0,
    started: float | None = None,
    profile: bool = False,
) -> None:
    """All steps that are left, with a line in `output`/metrics.jsonl for each measurement.

    The file reads as if the run had never been interrupted (its times aside). Raises
    StoppedError on SIGTERM. Of several processes the first writes. Dollars count from `started`,
    by time.monotonic(), or from now on.
    """
    record = Record(trainer, output)
    progress = Progress(trainer, dollars_an_hour, started or time.monotonic())
    with profiled(output) if profile and trainer.world.first else nullcontext() as profiler:
        after_step: Callable[[], None] = profiler.step if profiler else lambda: None

        def measure() -> None:
            if line := measure_if_due(trainer, validation, saving):
                line |= progress.times()
                record.add(line)
                progress.tell(line)

        measure()
        while not trainer.finished:
            for loss in trainer.train_epoch():
                progress.after_step(loss)
                after_step()
                measure()
                saving.after_step(trainer)
    saving.finish(trainer)
    progress.close()
