"""What snapshots cost: the same steps of fine-tuning with them and without. And how long a run
takes to leave when it is asked to."""

import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from benchmarks.training.finetune import OURS, ROWS, prepare
from benchmarks.training.measure import Comparison, Measured, Scale, Side, compare
from common.signals import Signals, StoppedError
from training.learn.loop import Saving
from training.learn.memory import keep_freed_memory
from training.learn.trainer import Trainer

GOAL = 0.98
SECONDS = 10.0  # between snapshots, a third of what training.train waits
MANY = 6  # times the steps of the other comparisons, for several snapshots
NONE = "without snapshots"
COUNTED = (
    "Photos a second over {steps} steps, the wait for the last snapshot included, after {warm_up} "
    "that do not count: all of ours, a snapshot every {seconds:.0f} s. Seconds to leave: from "
    "SIGTERM at the beginning of a step, its worst moment, to the end of the last snapshot."
)


def compare_snapshots(
    data: Path, weights: Path, arch: str, scale: Scale, repeats: int, *, threads: int
) -> Comparison:
    """`data` is a packed data set of `scale.size` pixels."""
    sides = [
        Side(
            name=name,
            run=partial(run_steps, data, weights, arch, scale, threads=threads, seconds=seconds),
            goal=goal,
        )
        for name, seconds, goal in (
            (NONE, None, None),
            (f"a snapshot every {SECONDS:.0f} s", SECONDS, GOAL),
        )
    ]
    steps = MANY * scale.steps
    counted = COUNTED.format(steps=steps, warm_up=scale.warm_up, seconds=SECONDS)
    return compare(f"snapshots {arch}", sides, repeats, counted=counted, reference=NONE)


def run_steps(
    data: Path, weights: Path, arch: str, scale: Scale, *, threads: int, seconds: float | None
) -> Measured:
    """Steps as training.learn.loop takes them, a snapshot every `seconds`."""
    keep_freed_memory()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    longer = replace(scale, steps=MANY * scale.steps + 1)  # the last one is asked to leave
    device = torch.device("cpu")
    network, source, settings = prepare(
        data, weights, arch, ROWS[OURS], longer, threads=threads, device=device
    )
    trainer, signals = Trainer(network, source, settings, device), Signals(signal.SIGTERM)
    steps = trainer.train_epoch()
    facts = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(scale.warm_up):
            next(steps)
        begun = time.perf_counter()
        saving = Saving(Path(folder), seconds, signals) if seconds else None
        for _ in range(MANY * scale.steps):
            next(steps)
            if saving:
                saving.after_step(trainer)
        if saving:
            saving.wait()
        taken = time.perf_counter() - begun
        if saving:
            facts["seconds to leave"] = seconds_to_leave(trainer, steps, saving)
            files = list(Path(folder).glob("snapshot-*.pt"))
            facts["MB of a snapshot"] = files[-1].stat().st_size / 1e6
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return Measured(photos=MANY * scale.steps * scale.batch_size, seconds=taken, facts=facts)


def seconds_to_leave(trainer: Trainer, steps: Iterator[float], saving: Saving) -> float:
    """From SIGTERM to the last snapshot on disk, a whole step in between."""
    begun = time.perf_counter()
    signal.raise_signal(signal.SIGTERM)
    next(steps)
    try:
        saving.after_step(trainer)
    except StoppedError:
        return time.perf_counter() - begun
    raise AssertionError("it did not leave")
