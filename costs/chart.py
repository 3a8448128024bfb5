"""The chart of `python -m costs compare --chart FILE`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from costs.compare import Measured, PastRun, compare_run
from costs.endpoint import CALLS_A_DAY, EndpointCosts
from costs.prices import Prices

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, QUIET, OURS, THEIRS = "#222222", "#777777", "#1f77b4", "#d95f02"


def draw_chart(
    file: Path, run: PastRun, measured: Sequence[Measured], endpoint: EndpointCosts
) -> None:
    """Draw both comparisons side by side, as PNG or in the format that the file's suffix names.

    Raises ValueError for a suffix of no picture format, or a folder that cannot be written to.
    """
    # Not at the top: the import takes half a second. A Figure of its own needs no display.
    from matplotlib.figure import Figure

    prices = endpoint.prices
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    figure.get_layout_engine().set(wspace=0.08)  # type: ignore[union-attr, call-arg]
    left, right = figure.subplots(1, 2)
    _draw_run(left, run, prices, measured)
    _draw_endpoint(right, endpoint)
    by_records = "measured by the records of runs there, or assumed"
    minutes = f"{run.seconds / 60:.1f} minutes of machine time"
    _title(left, "One training run", by_records if measured else minutes)
    _title(
        right,
        "The endpoint, by calls a day",
        f"serverless ({endpoint.memory_mb} MB, {endpoint.call_seconds:g} s a call) or one "
        f"{endpoint.instance_type}",
    )
    figure.supxlabel(
        f"prices of {prices.region}, {prices.date}; sources in costs/prices.json",
        fontsize=8,
        color=QUIET,
        x=0.99,
        ha="right",
    )
    try:
        figure.savefig(file, dpi=150)
    except (OSError, ValueError) as error:
        raise ValueError(f"--chart {file}: {error}") from error


def _title(axes: "Axes", title: str, subtitle: str) -> None:
    axes.set_title(f"{title}\n", loc="left", color=INK, fontweight="bold")
    axes.text(0, 1.03, subtitle, transform=axes.transAxes, color=QUIET)


def _draw_run(axes: "Axes", run: PastRun, prices: Prices, measured: Sequence[Measured]) -> None:
    rows = [
        row
        for row in compare_run(run, prices, measured)
        if not row.where.startswith("original project")  # another training: another scale
    ][::-1]
    colours = [OURS if row.where == "EC2 spot" else QUIET for row in rows]
    cents = [row.dollars * 100 for row in rows]
    labels = [
        f"{row.where}\n{row.instance_type}{', assumed' * row.note.startswith('assumed')}"
        f"{', measured' * row.measured}"
        for row in rows
    ]
    bars = axes.barh(labels, cents, color=colours)
    axes.bar_label(bars, [f"{value:.2f} ¢" for value in cents], padding=4, color=INK)
    axes.set_xlim(0, max(cents) * 1.18)
    axes.set_xlabel("US cents")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(left=False)


def _draw_endpoint(axes: "Axes", costs: EndpointCosts) -> None:
    from matplotlib.ticker import EngFormatter

    calls = [CALLS_A_DAY[0], 10 * max(CALLS_A_DAY[-1], costs.break_even)]
    serverless = [costs.serverless_month(each) for each in calls]
    axes.loglog(calls, serverless, color=OURS, linewidth=2)
    axes.axhline(costs.month, color=THEIRS, linewidth=2)
    axes.plot(costs.break_even, costs.month, "o", color=INK, zorder=3)
    break_even = f"break-even: {costs.break_even:,.0f} calls a day"
    _note(axes, break_even, (costs.break_even, costs.month), (-30, -7), INK, ha="right", va="top")
    realtime = f"real-time, ${costs.month:,.0f} a month, called or not"
    _note(axes, realtime, (calls[0] * 1.5, costs.month), (0, 6), THEIRS)
    some = 1e3
    month = costs.serverless_month(some)
    some_calls = f"serverless, ${month:.2f} a month\nat {some:,.0f} calls a day"
    _note(axes, some_calls, (some, month), (8, -8), OURS, va="top")
    axes.set_xlim(*calls)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.set_xlabel("calls a day")
    axes.set_ylabel("US dollars a month")
    axes.grid(color="#eeeeee")
    axes.spines[["top", "right"]].set_visible(False)


def _note(
    axes: "Axes",
    text: str,
    at: tuple[float, float],
    offset: tuple[float, float],
    colour: str,
    **alignment: Any,
) -> None:
    """Write `text` at a point of the data, moved by `offset` in points."""
    axes.annotate(text, at, xytext=offset, textcoords="offset points", color=colour, **alignment)
