"""The demo's report: photos, plots and tables of one run in one HTML file."""

import base64
from collections.abc import Sequence
from pathlib import Path

import jinja2

from common.run_record import RunRecord
from costs.compare import ComparisonRow
from costs.prices import Prices
from rehearsal.answers import Sample


def write_page(
    file: Path,
    *,
    record: RunRecord,
    samples: Sequence[Sample],
    costs: Sequence[ComparisonRow],
    prices: Prices,
    real: bool,
    seconds: float,
) -> Path:
    """Write the report of a finished run to `file`, and return its path."""
    cost = record.read("cost.json")
    plot = file.with_suffix(".png")
    record.download("loss.png", plot)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template("page.html.j2").render(
        run_id=record.run_id,
        request=record.request(),
        status=record.status(),
        metrics=record.read("metrics.json"),
        samples=samples,
        real=real,
        minutes=seconds / 60,
        loss_plot=base64.b64encode(plot.read_bytes()).decode(),
        cost=cost,
        comparison=costs,
        prices=prices,
    )
    plot.unlink()
    file.write_text(html)
    return file
