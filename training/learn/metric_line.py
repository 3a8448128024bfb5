"""Metrics as a log line, and how CloudWatch and SageMaker's tuner parse them from it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

OBJECTIVE = "validation:best_loss"  # a running minimum: its last value is its lowest
# Metric in CloudWatch → name in the line.
METRICS = {
    "train:loss": "train_loss",
    "validation:loss": "validation_loss",
    "validation:accuracy": "validation_accuracy",
    OBJECTIVE: "best_validation_loss",
    "train:photos_per_second": "photos_per_second",
}


def metric_line(history: Sequence[Mapping[str, Any]]) -> str:
    """Format the last line of metrics.jsonl, such as `epoch 3: train_loss=1.2 …`."""
    last = history[-1]
    best = min(line["validation_loss"] for line in history)
    values = {**last, "best_validation_loss": best}
    shown = " ".join(f"{name}={values[name]}" for name in METRICS.values() if name in values)
    return f"epoch {last['epoch']:g}: {shown}"


def metric_definitions() -> list[dict[str, str]]:
    """Return the name and regular expression of each metric in the format of SageMaker."""
    return [{"Name": metric, "Regex": rf"\s{name}=(\S+)"} for metric, name in METRICS.items()]


def describe_metrics(values: Mapping[str, float]) -> str:
    """Summarise the latest values by metric for a user; empty before the first evaluation."""
    loss, validation = values.get("train:loss", math.nan), values.get("validation:loss", math.nan)
    if math.isnan(validation):
        return ""
    accuracy = values.get("validation:accuracy", math.nan)
    return f"loss {loss:.3f}, validation {validation:.3f}, {accuracy:.1%} right"
