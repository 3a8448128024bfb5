"""Warnings about the losses of a run: NaN, overfitting, a plateau."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

MIN_IMPROVEMENT = 0.005  # relative decrease of the validation loss that counts as better
MIN_DEGRADATION = 0.01  # relative increase that counts as worse
OVERFITTING_PATIENCE = 3  # evaluations that are worse than the best one
PLATEAU_PATIENCE = 5  # evaluations without an improvement


def loss_warnings(history: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return warnings, one line each, for the lines of a metrics.jsonl; empty if there are none.

    Warns about a loss that is NaN or infinite; overfitting: the validation loss was worse than its
    best for several evaluations while the training loss fell; a plateau: the validation loss has
    not improved for longer (patience and minimum improvement as in early stopping). The text stays
    the same while the condition lasts, so that a caller can print it once.
    """
    sides = {"training": "train_loss", "validation": "validation_loss"}
    not_finite = [
        f"the {side} loss was {wrong[0][name]} after step {wrong[0]['step']}: lower the learning "
        "rate"
        for side, name in sides.items()
        if (wrong := [line for line in history if not math.isfinite(line[name])])
    ]
    if not_finite or not history:
        return not_finite
    best = 0
    for number, line in enumerate(history):
        if line["validation_loss"] < history[best]["validation_loss"] * (1 - MIN_IMPROVEMENT):
            best = number
    lowest, later = history[best]["validation_loss"], history[best + 1 :]
    worse = [line["validation_loss"] > lowest * (1 + MIN_DEGRADATION) for line in later]
    still_learning = history[-1]["train_loss"] < history[best]["train_loss"]
    since = f"since step {history[best]['step']}"
    if len(later) >= OVERFITTING_PATIENCE and all(worse[-OVERFITTING_PATIENCE:]) and still_learning:
        return [
            f"overfitting {since}: the validation loss rises while the training loss falls; "
            "train for fewer epochs or regularise more"
        ]
    if len(later) >= PLATEAU_PATIENCE:
        return [
            f"plateau {since}: the validation loss no longer falls; more epochs with these "
            "settings will not help"
        ]
    return []
