"""What a run looked like: loss.png, and report.html with everything in one file."""

import base64
import io
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from training.learn.loss_warnings import warnings_of

INKS = {"light": "#1d2733", "dark": "#e3e8ee"}  # as in report.html.j2
BLUE, ORANGE = "#3f83d1", "#e07b1a"  # told apart by the colour-blind, seen on white and on black

ERRORS = (  # of metrics.json, what it is called, its unit
    ("mae", "Mean absolute error", "items"),
    ("rmse", "RMSE of the answer", "items"),
    ("rmse_of_expected", "RMSE of the expected count", "items"),
    ("cross_entropy", "Cross-entropy of the calibrated probabilities", "nats"),
)


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A photo that was counted wrong; `probability` is that of the predicted count."""

    id: str
    jpeg: bytes
    count: int
    predicted: int
    probability: float


@dataclass(frozen=True, kw_only=True)
class Plot:
    """One plot as data URIs of SVGs, for either background."""

    light: str
    dark: str


def write_report(
    file: Path,
    *,
    title: str,
    command: Sequence[str],
    settings: Mapping[str, Any],
    metrics: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    mistakes: Sequence[Mistake] = (),
) -> None:
    """Write the report of a run to `file`: one HTML page that loads nothing else.

    `command` is what reproduces the run, in words as a shell passes them; `metrics` the content of
    metrics.json, its `test`, or without it `validation`, from `metrics.evaluate`, with `inventory`
    in it from `check_inventory`, and `temperature` from `fit_temperature` if there are any;
    `history` the lines of metrics.jsonl. What is missing there is left out of the page.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda share: f"{100 * share:.1f}"
    environment.filters["data_uri"] = data_uri
    losses = _lines_with_losses(history)
    judged = metrics.get("test") or metrics.get("validation") or {}
    bins = judged.get("calibration", {}).get("bins", [])
    html = environment.get_template("report.html.j2").render(
        title=title,
        command=_over_lines(command),
        settings=settings,
        metrics=metrics,
        judged=judged,
        tested="test" in metrics,
        history=history,
        mistakes=mistakes,
        warnings=warnings_of(history),
        losses=losses,
        loss_plot=_plot(lambda axes: _draw_loss(axes, losses)) if losses else None,
        reliability_plot=_plot(lambda axes: _draw_reliability(axes, bins)) if bins else None,
        time=_time_split(history),
        errors=ERRORS,
    )
    file.write_text(html, encoding="utf-8")


def plot_loss(metrics_file: Path, picture: Path) -> None:
    """Draw training and validation loss over the epochs of a metrics.jsonl."""
    lines = [json.loads(line) for line in metrics_file.read_text().splitlines()]
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.set_title("Loss")
    _draw_loss(axes, _lines_with_losses(lines))
    figure.savefig(picture, dpi=100)


def data_uri(content: bytes, kind: str) -> str:
    """`content` as an address that holds it; `kind` is its media type, such as image/jpeg."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _lines_with_losses(history: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [line for line in history if {"train_loss", "validation_loss"} <= line.keys()]


def _draw_loss(axes: Axes, lines: Sequence[Mapping[str, Any]]) -> None:
    """Over the steps where every line has one, or else over the epochs."""
    unit = "step" if all("step" in line for line in lines) else "epoch"
    places = [line[unit] for line in lines]
    marker = "o" if len(lines) <= 40 else ""
    for side, name, colour in (
        ("training", "train_loss", BLUE),
        ("validation", "validation_loss", ORANGE),
    ):
        values = [line[name] for line in lines]
        axes.plot(places, values, label=side, color=colour, marker=marker, markersize=3)
    axes.set(xlabel=unit, ylabel="cross-entropy")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(framealpha=0)
    axes.grid(alpha=0.25)


def _draw_reliability(axes: Axes, bins: Sequence[Mapping[str, Any]]) -> None:
    """Accuracy over confidence, the area of a dot by its photos, and the diagonal."""
    axes.plot([0, 1], [0, 1], color="grey", linestyle="--", linewidth=1, label="calibrated")
    most = max(one["photos"] for one in bins)
    confidence, accuracy = ([one[name] for one in bins] for name in ("confidence", "accuracy"))
    axes.plot(confidence, accuracy, color=BLUE, linewidth=1)
    areas = [8 + 120 * one["photos"] / most for one in bins]
    axes.scatter(confidence, accuracy, areas, color=BLUE, label="model", zorder=3)
    axes.set(xlabel="probability of the answer", ylabel="share that is right")
    axes.set(xlim=(0, 1.03), ylim=(0, 1.03))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    axes.legend(framealpha=0, loc="upper left", markerscale=0.6)
    axes.grid(alpha=0.25)


def _plot(draw: Callable[[Axes], None]) -> Plot:
    """Draw once for either background, small enough that text can be read on a phone."""
    drawn = {}
    for background, ink in INKS.items():
        with matplotlib.rc_context(
            {
                "axes.edgecolor": ink,
                "axes.labelcolor": ink,
                "svg.hashsalt": "report",  # the same input gives the same bytes
                "text.color": ink,
                "xtick.color": ink,
                "ytick.color": ink,
            }
        ):
            figure = Figure(figsize=(3.8, 2.8), layout="constrained")
            draw(figure.subplots())
            content = io.BytesIO()
            figure.savefig(content, format="svg", transparent=True, metadata={"Date": None})
        drawn[background] = data_uri(content.getvalue(), "image/svg+xml")
    return Plot(**drawn)


def _time_split(history: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds of the whole run by what they went to; empty where nobody measured them."""
    split = {
        name: sum(line.get(f"{name}_seconds", 0.0) for line in history)
        for name in ("loading", "computing")
    }
    if not sum(split.values()):
        return {}
    total = sum(line.get("seconds", 0.0) for line in history)
    return {**split, "rest": max(0.0, total - sum(split.values()))}


def _over_lines(command: Sequence[str]) -> str:
    """A command for a shell, a flag a line."""
    text = ""
    for word in command:
        text += (" \\\n  " if word.startswith("--") else " ") + shlex.quote(word)
    return text.lstrip()
