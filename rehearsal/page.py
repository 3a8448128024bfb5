"""The demo's page: pictures, plots and tables of one run in one HTML file."""

import base64
from dataclasses import dataclass
from pathlib import Path

import jinja2

from costs.compare import compare_run, past_run
from costs.prices import load_prices
from serving.inference import Prediction
from training.run_record import RunRecord


@dataclass(frozen=True)
class Sample:
    """A test photo, its true count, and what the endpoint answered."""

    photo_id: str
    jpeg: bytes
    truth: int
    prediction: Prediction

    @property
    def data_url(self) -> str:
        return f"data:image/jpeg;base64,{base64.b64encode(self.jpeg).decode()}"


def write_page(
    file: Path, *, record: RunRecord, samples: list[Sample], real: bool, seconds: float
) -> Path:
    """Write the page of a finished run to `file` and return its path."""
    cost = record.read("cost.json")
    prices = load_prices()
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
        comparison=compare_run(past_run(record, prices), prices),
        prices=prices,
    )
    plot.unlink()
    file.write_text(html)
    return file
