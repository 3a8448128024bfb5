"""The training loop: steps, progress, metrics, checkpoints, and stopping on a signal."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from tqdm import tqdm

from common.signals import Signals, StoppedError
from training.learn.batch import Examples
from training.learn.checkpoint import CheckpointWriter
from training.learn.events import write_events
from training.learn.loss_warnings import loss_warnings
from training.learn.metric_line import metric_line
from training.learn.profile import profiled
from training.learn.trainer import Trainer

EVENTS_SECONDS = 10.0  # between updates of the TensorBoard events


class Checkpointing:
    """Saves a checkpoint every `seconds`, on SIGUSR1, and on SIGTERM before stopping."""

    def __init__(self, folder: Path, seconds: float, signals: Signals) -> None:
        self._writer = CheckpointWriter(folder)
        self._seconds, self._signals = seconds, signals
        self._saved = time.monotonic()

    def after_step(self, trainer: Trainer) -> None:
        """Save if it is due. Raises StoppedError after SIGTERM, with the checkpoint on disk."""
        # Processes may receive the signal in different steps, but must stop after the same one.
        stopping = trainer.world.any(self._signals.seen(signal.SIGTERM))
        requested = stopping or self._signals.seen(signal.SIGUSR1)
        due = time.monotonic() - self._saved >= self._seconds and not self._writer.busy
        if (requested or due) and trainer.world.first:
            self._signals.forget(signal.SIGUSR1)
            self._writer.save(trainer.checkpoint())
            self._saved = time.monotonic()
        if stopping:
            self.wait()
            raise StoppedError

    def finish(self, trainer: Trainer) -> None:
        """Save the final state, so that an interruption after training does not repeat it."""
        if trainer.world.first:
            self._writer.save(trainer.checkpoint())
        self.wait()

    def wait(self) -> None:
        """Wait until the last checkpoint is on disk."""
        self._writer.wait()


class MetricsFiles:
    """Writes metrics.jsonl and the TensorBoard events, in the first process only."""

    def __init__(self, trainer: Trainer, output: Path) -> None:
        self._trainer, self._output = trainer, output
        self._file = output / "metrics.jsonl"
        self._events_written = time.monotonic()
        if trainer.world.first:
            self._file.write_text("".join(json.dumps(line) + "\n" for line in trainer.history))

    def add(self, line: dict[str, Any]) -> None:
        """Append the last line of the history."""
        if not self._trainer.world.first:
            return
        with self._file.open("a") as stream:
            stream.write(json.dumps(line) + "\n")
        if self._trainer.finished or time.monotonic() - self._events_written >= EVENTS_SECONDS:
            write_events(self._output / "events", self._trainer.history)
            self._events_written = time.monotonic()


class Progress:
    """Shows the progress bar, and measures time and cost between evaluations."""

    def __init__(self, trainer: Trainer, dollars_an_hour: float, started: float) -> None:
        """Start measuring; `started` is the time.monotonic() at which this process started."""
        total = trainer.settings.epochs * trainer.steps
        taken = trainer.epoch * trainer.steps + trainer.step
        self._bar = tqdm(
            total=total,
            initial=taken,
            desc=trainer.settings.mode,
            unit="step",
            # An explicit value overrides TQDM_DISABLE, so respect it here.
            disable=not trainer.world.first or "TQDM_DISABLE" in os.environ,
        )
        self._trainer, self._dollars_an_hour = trainer, dollars_an_hour
        self._spent = trainer.history[-1].get("dollars", 0.0) if trainer.history else 0.0
        self._started, self._evaluated = started, time.monotonic()
        self._totals_then = self._totals()
        self._shown_warnings: set[str] = set()
        # On a terminal, the progress bar is enough.
        self._log_metrics = trainer.world.first and not sys.stderr.isatty()

    def after_step(self, loss: float) -> None:
        shown = {"loss": f"{loss:.3f}"}
        if self._trainer.history:
            shown["accuracy"] = f"{self._trainer.history[-1]['validation_accuracy']:.1%}"
        loading, computing, photos = self._since_evaluation()
        shown["photos/s"] = f"{photos / max(loading + computing, 1e-9):.1f}"
        if self._dollars_an_hour:
            shown["$"] = f"{self.dollars():.4f}"
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update()

    def dollars(self) -> float:
        """Return the cost of the run so far, including what earlier processes recorded."""
        return self._spent + (time.monotonic() - self._started) / 3600 * self._dollars_an_hour

    def times(self) -> dict[str, float]:
        """Return the times since the last call, for metrics.jsonl; they differ from run to run."""
        now = time.monotonic()
        loading, computing, photos = self._since_evaluation()
        times = {
            "seconds": now - self._evaluated,
            "loading_seconds": loading,
            "computing_seconds": computing,
            "photos_per_second": photos / max(loading + computing, 1e-9),
        }
        if self._dollars_an_hour:
            times["dollars"] = self.dollars()
        self._evaluated, self._totals_then = now, self._totals()
        return {name: round(value, 4) for name, value in times.items()}

    def _totals(self) -> tuple[float, float, int]:
        """Return the seconds of loading and of computing, and the photos, of this process."""
        trainer = self._trainer
        return trainer.loading_seconds, trainer.computing_seconds, trainer.photos

    def _since_evaluation(self) -> tuple[float, float, int]:
        """Return the increase of the totals since the last evaluation."""
        loading, computing, photos = self._totals()
        then = self._totals_then
        return loading - then[0], computing - then[1], photos - then[2]

    def log_evaluation(self) -> None:
        """Log the last line of the history, and each new warning about the losses."""
        if self._log_metrics:
            tqdm.write(metric_line(self._trainer.history), file=sys.stderr)
        for warning in loss_warnings(self._trainer.history):
            if warning not in self._shown_warnings and self._trainer.world.first:
                self._shown_warnings.add(warning)
                tqdm.write(f"warning: {warning}", file=sys.stderr)

    def close(self) -> None:
        self._bar.close()


def evaluate_if_due(
    trainer: Trainer, validation: Examples, checkpointing: Checkpointing
) -> dict[str, Any] | None:
    """Evaluate if it is due; returns the line of metrics.jsonl, or None.

    To be called after each step, and before the first, as an interruption may have prevented the
    last evaluation. Raises StoppedError after SIGTERM, with the checkpoint on disk.
    """
    if not trainer.evaluation_due:
        return None
    try:
        return trainer.evaluate(validation)
    except StoppedError:
        checkpointing.after_step(trainer)
        raise


def train(
    trainer: Trainer,
    validation: Examples,
    output: Path,
    checkpointing: Checkpointing,
    *,
    dollars_an_hour: float = 0.0,
    started: float | None = None,
    profile: bool = False,
) -> None:
    """Take all remaining steps, and write a line of metrics.jsonl in `output` per evaluation.

    Apart from its times, the file is the same whether or not the run was interrupted. Costs count
    from `started`, by time.monotonic(), or from this call. Raises StoppedError on SIGTERM.
    """
    files = MetricsFiles(trainer, output)
    progress = Progress(trainer, dollars_an_hour, started or time.monotonic())
    with profiled(output) if profile and trainer.world.first else nullcontext() as profiler:
        after_step: Callable[[], None] = profiler.step if profiler else lambda: None

        def evaluate() -> None:
            if line := evaluate_if_due(trainer, validation, checkpointing):
                line |= progress.times()  # in the history as well
                files.add(line)
                progress.log_evaluation()

        evaluate()
        while not trainer.finished:
            for loss in trainer.train_epoch():
                progress.after_step(loss)
                after_step()
                evaluate()
                checkpointing.after_step(trainer)
    checkpointing.finish(trainer)
    progress.close()
