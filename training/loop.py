"""All steps of a run: progress, metrics, snapshots, and leaving when asked to."""

import json
import signal
import time
from pathlib import Path

from tqdm import tqdm

from training.checkpoint import SnapshotWriter
from training.signals import Signals, StoppedError
from training.trainer import Examples, Trainer


class Saving:
    """When a snapshot is due: every `seconds`, on SIGUSR1, and on SIGTERM before leaving."""

    def __init__(self, folder: Path, seconds: float, signals: Signals) -> None:
        self._writer = SnapshotWriter(folder)
        self._seconds, self._signals = seconds, signals
        self._saved = time.monotonic()

    def after_step(self, trainer: Trainer) -> None:
        """Save if it is time to. Raises StoppedError after SIGTERM, with the snapshot on disk."""
        stopping = self._signals.seen(signal.SIGTERM)
        asked = stopping or self._signals.seen(signal.SIGUSR1)
        due = time.monotonic() - self._saved >= self._seconds and not self._writer.busy
        if asked or due:
            self._signals.forget(signal.SIGUSR1)
            self._writer.save(trainer.snapshot())
            self._saved = time.monotonic()
        if stopping:
            self.finish()
            raise StoppedError

    def finish(self) -> None:
        """Wait for the snapshot on its way."""
        self._writer.wait()


def train(trainer: Trainer, validation: Examples, metrics_file: Path, saving: Saving) -> None:
    """All steps that are left, with a line in `metrics_file` for each epoch.

    The file reads as if the run had never been interrupted (its seconds aside). Raises
    StoppedError on SIGTERM.
    """
    metrics_file.write_text("".join(json.dumps(line) + "\n" for line in trainer.history))
    total = trainer.settings.epochs * trainer.steps
    done = trainer.epoch * trainer.steps + trainer.step
    with tqdm(total=total, initial=done, desc=trainer.settings.mode, unit="step") as progress:
        while not trainer.finished:
            started = time.monotonic()
            for loss in trainer.train_epoch():
                progress.set_postfix(shown(trainer, loss), refresh=False)
                progress.update()
                if trainer.step < trainer.steps:
                    saving.after_step(trainer)
            line = trainer.finish_epoch(validation)
            line["seconds"] = round(time.monotonic() - started, 3)
            with metrics_file.open("a") as stream:
                stream.write(json.dumps(line) + "\n")
            saving.after_step(trainer)
    saving.finish()


def shown(trainer: Trainer, loss: float) -> dict[str, str]:
    """What stands behind the progress bar."""
    words = {"loss": f"{loss:.3f}"}
    if trainer.history:
        words["accuracy"] = f"{trainer.history[-1]['validation_accuracy']:.1%}"
    return words
