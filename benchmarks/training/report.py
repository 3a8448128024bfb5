"""Comparisons as Markdown and as JSON, with the machine that they were measured on."""

import importlib.metadata
import os
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.training.measure import Comparison, Range

CPU_INFO = Path("/proc/cpuinfo")
FLAGS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
PACKAGES = ("torch", "torchvision", "timm", "onnxruntime", "numpy", "pillow")


def machine(threads: int) -> dict[str, Any]:
    """What times depend on; the load is that of other work, where taken before measuring."""
    text = CPU_INFO.read_text() if CPU_INFO.exists() else ""
    fields = {name.strip(): value.strip() for name, value in re.findall("(.+):(.*)", text)}
    present = fields.get("flags", "").split()
    return {
        "cpu": fields.get("model name", platform.processor()),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "flags": [flag for flag in FLAGS if flag in present],
        "threads": threads,
        "load before": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
    }


def to_json(comparison: Comparison) -> dict[str, Any]:
    """All runs, and the ranges that the table shows."""
    return {
        "title": comparison.title,
        "counted": comparison.counted,
        "reference": comparison.reference,
        "sides": {
            side: {
                "seconds": asdict(comparison.seconds(side)),
                "photos_per_second": asdict(comparison.rate(side)),
                "times_as_fast": asdict(comparison.times_as_fast(side)),
                "goal": comparison.goals[side],
                "runs": [asdict(run) for run in runs],
            }
            for side, runs in comparison.runs.items()
        },
    }


def describe_machine(found: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    gpu = f"{found['gpu']}; " if found["gpu"] else ""
    return (
        f"{gpu}{found['cpu']}, {found['cores']} cores ({', '.join(found['flags'])}), "
        f"{found['threads']} threads, load before {found['load before']}; {found['system']}; "
        f"{versions}."
    )


def describe(comparison: Comparison) -> str:
    """Tables in Markdown: times and ratios, then parts of the seconds and what else came out."""
    rows = [
        [
            side,
            in_words(comparison.seconds(side)),
            in_words(comparison.rate(side)),
            "1" if side == comparison.reference else in_words(comparison.times_as_fast(side)),
            f"{comparison.goals[side]:g}" if comparison.goals[side] else "",
        ]
        for side in comparison.runs
    ]
    repeats = len(comparison.runs[comparison.reference])
    texts = [
        f"### {comparison.title[0].upper()}{comparison.title[1:]}",
        f"{comparison.counted} Median (least–most) of {repeats}; ratios within a round.",
        table(["", "seconds", "photos/s", "times as fast", "goal"], rows),
    ]
    for heading, values in (
        ("seconds of", {side: comparison.parts(side) for side in comparison.runs}),
        ("also", {side: comparison.facts(side) for side in comparison.runs}),
    ):
        names = list(dict.fromkeys(name for side in values.values() for name in side))
        if names:
            cells = [
                [side, *(number(found[name]) if name in found else "" for name in names)]
                for side, found in values.items()
                if found
            ]
            texts.append(table([heading, *names], cells))
    return "\n\n".join(texts)


def extrapolate(comparison: Comparison, fixed: Iterable[str], photos: int) -> str:
    """One line: what the medians come to when all parts but the `fixed` grow with the photos."""
    seconds = {}
    for side, runs in comparison.runs.items():
        parts = comparison.parts(side)
        constant = sum(parts.get(name, 0.0) for name in fixed)
        seconds[side] = constant + (sum(parts.values()) - constant) * photos / runs[0].photos
    reference = seconds[comparison.reference]
    words = [
        f"{side} {number(needed)} s ({number(reference / needed)} times as fast)"
        for side, needed in seconds.items()
    ]
    return (
        f"Extrapolated, not measured, to {photos:,} training photos, as all parts but "
        f"{', '.join(fixed)} grow with them: {'; '.join(words)}."
    )


def table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Text on the left, numbers on the right."""
    lines = [heading, ["---", *["--:"] * (len(heading) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def difference(found: Mapping[str, float], scale: float, digits: int) -> str:
    """A paired difference and its 95 % interval, of training.evaluate.metrics.with_interval."""
    value, low, high = (scale * found[name] for name in ("value", "low", "high"))
    text = f"{value:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"
    return text.replace("-", "−")


def in_words(found: Range) -> str:
    if found.least == found.most:
        return number(found.median)
    return f"{number(found.median)} ({number(found.least)}–{number(found.most)})"


def number(value: float) -> str:
    """Three digits that count; whole where they are more."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
