"""Sides measured in turn, each in a fresh process of its own, and how they compare."""

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context, set_start_method


class BenchmarkError(RuntimeError):
    """Nothing can be measured like this; the message is one line."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much work is measured."""

    photos: int  # drawn, where no real ones are given
    sides: range  # of these photos, pixels
    size: int  # of the network's input, pixels a side
    batch_size: int  # of fine-tuning and of the loader
    warm_up: int  # steps of fine-tuning before the clock starts
    steps: int  # of fine-tuning on the clock
    passes: int  # of the loader over the photos
    probed: int  # photos that decide how many workers the recipe gets


FULL = Scale(
    photos=400,
    sides=range(300, 871),  # as the real ones
    size=224,
    batch_size=32,
    warm_up=2,
    steps=10,
    passes=16,
    probed=96,
)
QUICK = Scale(
    photos=80,
    sides=range(64, 97),
    size=64,
    batch_size=8,
    warm_up=1,
    steps=1,
    passes=1,
    probed=8,
)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One run of one side."""

    photos: int
    seconds: float
    parts: dict[str, float] = field(default_factory=dict)  # the seconds, by what they went for
    facts: dict[str, float] = field(default_factory=dict)  # what else came out, such as accuracy

    @property
    def rate(self) -> float:
        """Photos a second."""
        return self.photos / self.seconds


@dataclass(frozen=True, kw_only=True)
class Side:
    """What is measured, under a name."""

    name: str
    run: Callable[[], Measured]  # can be pickled: a function of a module, or a partial of one
    goal: float | None = None  # times as fast as the reference


@dataclass(frozen=True, kw_only=True)
class Range:
    """Several runs of one figure."""

    median: float
    least: float
    most: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Sides that did the same work, round by round."""

    title: str
    counted: str  # what the seconds hold
    reference: str  # the side that the others are compared with
    runs: dict[str, list[Measured]]  # side → one run a round
    goals: dict[str, float | None]

    def seconds(self, side: str) -> Range:
        return range_of([run.seconds for run in self.runs[side]])

    def rate(self, side: str) -> Range:
        return range_of([run.rate for run in self.runs[side]])

    def times_as_fast(self, side: str) -> Range:
        """The ratio of photos a second, side to reference, taken in each round by itself.

        Runs of one round are neighbours in time: what slows a machine down slows both.
        """
        rounds = zip(self.runs[side], self.runs[self.reference], strict=True)
        return range_of([run.rate / reference.rate for run, reference in rounds])

    def parts(self, side: str) -> dict[str, float]:
        """The median of each part of the seconds."""
        return _medians([run.parts for run in self.runs[side]])

    def facts(self, side: str) -> dict[str, float]:
        """The median of each fact."""
        return _medians([run.facts for run in self.runs[side]])


def compare(
    title: str, sides: Sequence[Side], repeats: int, *, counted: str, reference: str
) -> Comparison:
    """Run all sides `repeats` times, in turn, every second round backwards."""
    runs: dict[str, list[Measured]] = {side.name: [] for side in sides}
    for number in range(repeats):
        for side in sides if number % 2 == 0 else reversed(sides):
            print(f"{title}, round {number + 1} of {repeats}: {side.name}", file=sys.stderr)
            measured = run_alone(side.run)
            runs[side.name].append(measured)
            print(f"  {measured.seconds:.1f} s, {measured.rate:.3g} photos/s", file=sys.stderr)
    return Comparison(
        title=title,
        counted=counted,
        reference=reference,
        runs=runs,
        goals={side.name: side.goal for side in sides},
    )


def run_alone(run: Callable[[], Measured]) -> Measured:
    """Call `run` in a new process: nothing is warm, and no setting of another side is left."""
    context = get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=_set_up) as process:
        try:
            return process.submit(run).result()
        except BrokenProcessPool as error:
            raise BenchmarkError(
                "a measured process was killed, most likely out of memory: use a larger machine"
            ) from error


def _set_up() -> None:
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # stdout is for the tables
    # Else its own workers would start as it did, which takes them seconds.
    set_start_method(None, force=True)


def range_of(values: Sequence[float]) -> Range:
    return Range(median=statistics.median(values), least=min(values), most=max(values))


def _medians(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


class Clock:
    """Adds up the seconds of named parts; a part inside another one counts for itself alone."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = {}

    @property
    def seconds(self) -> float:
        return sum(self.parts.values())

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time what is done within; also a decorator."""
        begun, before = time.perf_counter(), self.seconds
        try:
            yield
        finally:
            within = self.seconds - before
            elapsed = time.perf_counter() - begun - within
            self.parts[name] = self.parts.get(name, 0.0) + elapsed
