"""Plots and report of a run: loss.png, and report.html, a single self-contained file."""

import base64
import io
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from common.page import template
from training.learn.loss_warnings import loss_warnings

INKS = {"light": "#1d2733", "dark": "#e3e8ee"}  # as in report.html.j2
# Safe for colour-blind readers, and visible on white and on black.
BLUE, ORANGE = "#3f83d1", "#e07b1a"

ERRORS = (  # name in metrics.json, label, unit
    ("mae", "Mean absolute error", "items"),
    ("rmse", "RMSE of the prediction", "items"),
    ("rmse_of_mean", "RMSE of the mean count", "items"),
    ("cross_entropy", "Cross-entropy of the calibrated probabilities", "nats"),
)


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A photo with a wrong prediction, and the `probability` of that prediction."""

    id: str
    jpeg: bytes
    count: int
    predicted: int
    probability: float


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A plot as data URIs of SVGs, one for each background."""

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
    mistakes: Sequence[Mistake],
) -> None:
    """Write the report of a run to `file`, an HTML page without external resources.

    `command` reproduces the run. `metrics` is the content of metrics.json: the page shows `test`,
    or `validation` if there is none, from `metrics.evaluate` and, as `inventory`,
    `check_inventory`. `history` has the lines of metrics.jsonl.
    """
    evaluated = metrics.get("test") or metrics["validation"]
    bins = evaluated["calibration"]["bins"]
    page = template(
        Path(__file__).with_name("report.html.j2"),
        percent=lambda share: f"{100 * share:.1f}",
        data_uri=data_uri,
    )
    html = page.render(
        title=title,
        command=_format_command(command),
        settings=settings,
        metrics=metrics,
        evaluated=evaluated,
        tested="test" in metrics,
        history=history,
        mistakes=mistakes,
        warnings=loss_warnings(history),
        loss_plot=_plot(lambda axes: _draw_loss(axes, history)),
        reliability_plot=_plot(lambda axes: _draw_reliability(axes, bins)),
        time=_time_split(history),
        errors=ERRORS,
    )
    file.write_text(html, encoding="utf-8")


def plot_loss(history: Sequence[Mapping[str, Any]], picture: Path) -> None:
    """Plot training and validation loss over the steps of a run."""
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.set_title("Loss")
    _draw_loss(axes, history)
    figure.savefig(picture, dpi=100)


def data_uri(content: bytes, kind: str) -> str:
    """Return `content` as a data URI; `kind` is its media type, such as image/jpeg."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _draw_loss(axes: Axes, history: Sequence[Mapping[str, Any]]) -> None:
    steps = [line["step"] for line in history]
    marker = "o" if len(history) <= 40 else ""
    for side, name, colour in (
        ("training", "train_loss", BLUE),
        ("validation", "validation_loss", ORANGE),
    ):
        values = [line[name] for line in history]
        axes.plot(steps, values, label=side, color=colour, marker=marker, markersize=3)
    axes.set(xlabel="step", ylabel="cross-entropy")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(framealpha=0)
    axes.grid(alpha=0.25)


def _draw_reliability(axes: Axes, bins: Sequence[Mapping[str, Any]]) -> None:
    """Plot accuracy over confidence; the area of a dot shows its number of photos."""
    axes.plot([0, 1], [0, 1], color="grey", linestyle="--", linewidth=1, label="calibrated")
    most = max(each["photos"] for each in bins)
    confidence, accuracy = ([each[name] for each in bins] for name in ("confidence", "accuracy"))
    axes.plot(confidence, accuracy, color=BLUE, linewidth=1)
    areas = [8 + 120 * each["photos"] / most for each in bins]
    axes.scatter(confidence, accuracy, areas, color=BLUE, label="model", zorder=3)
    axes.set(xlabel="probability of the prediction", ylabel="share of correct predictions")
    axes.set(xlim=(0, 1.03), ylim=(0, 1.03))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    axes.legend(framealpha=0, loc="upper left", markerscale=0.6)
    axes.grid(alpha=0.25)


def _plot(draw: Callable[[Axes], None]) -> Plot:
    """Draw a plot for each background, small enough to be readable on a phone."""
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
    """Return the seconds of the whole run by activity."""
    loading, computing, total = (
        sum(line[name] for line in history)
        for name in ("loading_seconds", "computing_seconds", "seconds")
    )
    rest = max(0.0, total - loading - computing)
    return {"loading": loading, "computing": computing, "rest": rest}


def _format_command(command: Sequence[str]) -> str:
    """Format a command for a shell, with one flag per line."""
    text = ""
    for word in command:
        text += (" \\\n  " if word.startswith("--") else " ") + shlex.quote(word)
    return text.lstrip()
