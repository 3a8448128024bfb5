"""Measurements that take turns, each in a process of its own, and the tables that show them."""

import importlib.metadata
import os
import platform
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context, set_start_method
from pathlib import Path
from typing import Any

CPU_INFO = Path("/proc/cpuinfo")
CPU_FLAGS = (
    *("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16"),
    *("amx_int8", "amx_bf16"),
)
PACKAGES = ("torch", "torchvision", "timm", "onnxruntime", "numpy", "pillow")


class BenchmarkError(RuntimeError):
    """The measurement is not possible; the message is one line."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One run of one side."""

    photos: int
    seconds: float
    facts: Mapping[str, float] = field(default_factory=dict)  # other figures, such as p99

    @property
    def rate(self) -> float:
        """Photos per second."""
        return self.photos / self.seconds


Runs = Mapping[str, Sequence[Measured]]  # side → one run per round


@dataclass(frozen=True, kw_only=True)
class Range:
    """The same figure from several runs."""

    median: float
    least: float
    most: float

    def __str__(self) -> str:
        if self.least == self.most:
            return number(self.median)
        return f"{number(self.median)} ({number(self.least)}–{number(self.most)})"


def range_of(values: Sequence[float]) -> Range:
    return Range(median=statistics.median(values), least=min(values), most=max(values))


def ratios(mine: Sequence[Measured], others: Sequence[Measured]) -> Range:
    """The ratio of photos per second in each round.

    Runs of one round are neighbours in time: whatever slows the machine down slows both.
    """
    return range_of([run.rate / other.rate for run, other in zip(mine, others, strict=True)])


def compare(title: str, sides: Mapping[str, Callable[[], Measured]], repeats: int) -> Runs:
    """Run all sides `repeats` times in turn, every second round in reverse order.

    A side must be picklable: a function of a module, or a partial of one.
    """
    runs: dict[str, list[Measured]] = {name: [] for name in sides}
    for turn in range(repeats):
        for name in sides if turn % 2 == 0 else reversed([*sides]):
            print(f"{title}, round {turn + 1} of {repeats}: {name}", file=sys.stderr)
            measured = run_alone(sides[name])
            runs[name].append(measured)
            print(f"  {measured.seconds:.1f} s, {measured.rate:.3g} photos/s", file=sys.stderr)
    return runs


def run_alone(run: Callable[[], Measured]) -> Measured:
    """Call `run` in a new process, so that no cache is warm and no setting is left over."""
    context = get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=_set_up) as process:
        try:
            return process.submit(run).result()
        except BrokenProcessPool as error:
            raise BenchmarkError(
                "a measured process was killed, most likely because memory ran out: "
                "use a larger machine"
            ) from error


def _set_up() -> None:
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # stdout is for the tables
    # Otherwise its own workers would be spawned as well, which takes seconds each.
    set_start_method(None, force=True)


def describe(runs: Runs, reference: str) -> str:
    """Times and ratios to `reference` as a Markdown table: median (least–most)."""
    rows = [
        [
            name,
            str(range_of([run.seconds for run in mine])),
            str(range_of([run.rate for run in mine])),
            "1" if name == reference else str(ratios(mine, runs[reference])),
        ]
        for name, mine in runs.items()
    ]
    return table(["", "seconds", "photos/s", "times as fast"], rows)


def table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table: text on the left, numbers on the right."""
    lines = [heading, ["---", *["--:"] * (len(heading) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def number(value: float) -> str:
    """Three significant digits; from 100 on, a whole number."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def machine() -> dict[str, Any]:
    """What measured times depend on. The load is that of other work, so ask before measuring."""
    from torch import cuda  # a second and a half, which only a measurement should wait for

    text = CPU_INFO.read_text() if CPU_INFO.exists() else ""
    fields = {name.strip(): value.strip() for name, value in re.findall("(.+):(.*)", text)}
    present = fields.get("flags", "").split()
    return {
        "cpu": fields.get("model name", platform.processor()),
        "cores": os.cpu_count(),
        "gpu": cuda.get_device_name() if cuda.is_available() else None,
        "flags": [flag for flag in CPU_FLAGS if flag in present],
        "load before": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
    }


def describe_machine() -> str:
    """This machine in one line."""
    found = machine()
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    gpu = f"{found['gpu']}; " if found["gpu"] else ""
    return (
        f"{gpu}{found['cpu']}, {found['cores']} cores ({', '.join(found['flags'])}), "
        f"load before {found['load before']}; {found['system']}; {versions}."
    )
