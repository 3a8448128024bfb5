"""What the losses of a run warn of: NaN, overfitting, a plateau."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

LEAST_GAIN = 0.005  # by which share the validation loss must fall to be better
LEAST_RISE = 0.01  # by which share it must rise to be worse
RISING = 3  # evaluations worse than the best one before we call it overfitting
STANDING = 5  # evaluations no better before we call it a plateau


def warnings_of(history: Sequence[Mapping[str, Any]]) -> list[str]:
    """Warnings, a line each, that follow from the lines of a metrics.jsonl; none if all is well.

    Of a loss that is NaN or infinite; of overfitting: for several evaluations validation was worse
    than its best, while the training loss fell; of a plateau: for longer, validation was no better
    (patience and least gain as in early stopping). Lines without both losses are passed over. The
    text stays the same while the state lasts, so that a caller can print it once.
    """
    lines = [line for line in history if {"train_loss", "validation_loss"} <= line.keys()]
    sides = {"training": "train_loss", "validation": "validation_loss"}
    broken = [
        f"the {side} loss was {wrong[0][name]} after {_when(wrong[0])}: lower the learning rate"
        for side, name in sides.items()
        if (wrong := [line for line in lines if not math.isfinite(line[name])])
    ]
    if broken or not lines:
        return broken
    best = 0
    for place, line in enumerate(lines):
        if line["validation_loss"] < lines[best]["validation_loss"] * (1 - LEAST_GAIN):
            best = place
    least, since = lines[best]["validation_loss"], lines[best + 1 :]
    worse = [line["validation_loss"] > least * (1 + LEAST_RISE) for line in since]
    learns_on = lines[-1]["train_loss"] < lines[best]["train_loss"]
    if len(since) >= RISING and all(worse[-RISING:]) and learns_on:
        return [
            f"overfitting since {_when(lines[best])}: the validation loss rises while the training "
            "loss falls; train for less long, or regularise more"
        ]
    if len(since) >= STANDING:
        return [
            f"a plateau since {_when(lines[best])}: the validation loss no longer falls; "
            "more epochs of this kind will not help"
        ]
    return []


def _when(line: Mapping[str, Any]) -> str:
    """Where in the run a line is: its step if it has one, as one epoch may have several lines."""
    return f"step {line['step']}" if "step" in line else f"epoch {line['epoch']}"
