"""What snapshots cost: the same steps of fine-tuning with them and without."""

import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from benchmarks.training_finetune import CPU, OURS, ROWS, prepare
from benchmarks.training_measure import Comparison, Measured, Scale, Side, compare
from training.loop import Saving
from training.memory import keep_freed_memory
from training.signals import Signals
from training.trainer import Trainer

GOAL = 0.98
SECONDS = 10.0  # between snapshots, a third of what training.train waits
MANY = 6  # times the steps of the other comparisons, for several snapshots
NONE = "without snapshots"
COUNTED = (
    "Photos a second over {steps} steps, the wait for the last snapshot included, after {warm_up} "
    "that do not count: all of ours, a snapshot every {seconds:.0f} s."
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
    """Steps as training.loop takes them, a snapshot every `seconds`."""
    keep_freed_memory()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    longer = replace(scale, steps=MANY * scale.steps)
    network, source, settings = prepare(data, weights, arch, ROWS[OURS], longer, threads=threads)
    trainer = Trainer(network, source, settings, CPU)
    with tempfile.TemporaryDirectory() as folder:
        begun = 0.0
        saving = None
        for number, _ in enumerate(trainer.train_epoch(), start=1):
            if number == scale.warm_up:
                begun = time.perf_counter()
                saving = Saving(Path(folder), seconds, Signals()) if seconds else None
            if saving:
                saving.after_step(trainer)
        if saving:
            saving.wait()
        taken = time.perf_counter() - begun
        facts = {"snapshots kept": float(len(list(Path(folder).glob("snapshot-*.pt"))))}
    return Measured(photos=longer.steps * scale.batch_size, seconds=taken, facts=facts)
