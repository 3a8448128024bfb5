import base64
import io
import math
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.support.packed import draw_photo
from training.evaluate import report as report_module
from training.evaluate.inventory_check import check_inventory
from training.evaluate.metrics import accuracy_by, evaluate
from training.evaluate.report import Mistake, Plot, plot_loss, write_report

COUNTS = [1, 2, 3, 4, 5]
EMPTY = {"meta", "link", "img", "source", "br"}  # elements without an end
INLINE = {"b", "small"}  # no space around them
COMMAND = ["python", "-m", "training.train", "--data", "my bins", "--learning-rate", "0.0005"]


class Page(HTMLParser):
    """What a browser sees: text, addresses, and whether each element is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in EMPTY:
            self.open.append(tag)
        self._separate(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self._separate(tag)

    def _separate(self, tag: str) -> None:
        if tag not in INLINE:
            self.texts.append(("", " "))

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    @property
    def text(self) -> str:
        """As shown: white space in one piece, without the style sheet."""
        return " ".join("".join(text for tag, text in self.texts if tag != "style").split())

    @property
    def headings(self) -> list[str]:
        return [text for tag, text in self.texts if tag == "h2"]

    def values(self, name: str) -> list[str]:
        return [value for _, one, value in self.attributes if one == name]


def make_metrics() -> dict[str, Any]:
    random = np.random.default_rng(0)
    truth = random.integers(1, 6, 200)
    probabilities = random.dirichlet(np.ones(5), 200) + 0.25 * np.eye(5)[truth - 1]
    probabilities = (probabilities / 1.25).astype(np.float32)
    test = evaluate(probabilities, truth, COUNTS, majority=3)
    ids, groups = [f"{i:05d}" for i in range(200)], [f"bin {i // 4}" for i in range(200)]
    test["inventory"] = check_inventory(probabilities, truth, COUNTS, ids=ids, groups=groups)
    some = slice(150)
    test["with_products"] = evaluate(probabilities[some], truth[some], COUNTS, majority=3)
    test["with_products"]["by_products"] = accuracy_by([1] * 100 + [2] * 50, truth[some] == 3)
    test["with_products"]["photo_alone"] = evaluate(
        probabilities[::2], truth[::2], COUNTS, majority=3
    )
    test["with_products"]["number_alone"] = {"value": 0.5, "low": 0.44, "high": 0.56}
    return {"train": {"photos": 5490}, "temperature": 1.234, "test": test}


METRICS = make_metrics()
HISTORY = [
    {
        "epoch": epoch,
        "step": 100 * epoch,
        "train_loss": 1.6 * 0.95**epoch,
        "validation_loss": 1.6 * 0.97**epoch,
        "validation_accuracy": 0.3,
        "seconds": 10.0,
        "loading_seconds": 1.0,
        "computing_seconds": 7.5,
        "photos_per_second": 41.5,
    }
    for epoch in range(1, 7)
]


def report(folder: Path, **changes: Any) -> Page:
    arguments = {
        "title": "Run seven",
        "command": COMMAND,
        "settings": {"arch": "efficientnet_lite0", "learning_rate": 0.0005},
        "metrics": METRICS,
        "history": HISTORY,
        "mistakes": [],
    }
    write_report(folder / "report.html", **(arguments | changes))
    return Page((folder / "report.html").read_text())


def test_the_headline_has_intervals_and_the_majority_beside_it(tmp_path: Path) -> None:
    page = report(tmp_path)
    for name, label in (
        ("accuracy", "Exact counts"),
        ("majority", "Baseline: always 3"),
    ):
        figure = METRICS["test"][name]
        value, low, high = (f"{100 * figure[key]:.1f}" for key in ("value", "low", "high"))
        assert f"{label} {value} % 95 % interval {low} to {high}" in page.text
    for name, label in (
        ("mae", "Mean absolute error"),
        ("rmse", "RMSE of the prediction"),
        ("rmse_of_mean", "RMSE of the mean count"),
    ):
        figure = METRICS["test"]["intervals"][name]
        value, low, high = (f"{figure[key]:.2f}" for key in ("value", "low", "high"))
        assert f"{label} {value} items 95 % interval {low} to {high}" in page.text


HEADINGS = [
    "With the products of the record",
    "Losses",
    "Confusion matrix",
    "Calibration",
    "Finding wrong inventory records",
    "Worst mistakes",
    "Time",
    "Reproduce this run",
]


def test_every_part_is_there_when_its_data_is(tmp_path: Path) -> None:
    mistake = Mistake(id="1", jpeg=b"", count=1, predicted=2, probability=0.5)
    page = report(tmp_path, mistakes=[mistake])
    assert page.headings == HEADINGS
    assert "expected calibration error" in page.text
    assert "with a temperature of 1.23" in page.text
    assert f"AUROC is {METRICS['test']['inventory']['auroc']['value']:.3f}" in page.text


def test_without_mistakes_neighbouring_photos_or_products_their_parts_are_absent(
    tmp_path: Path,
) -> None:
    metrics = make_metrics()
    metrics["test"]["inventory"] = {"photos": 0}
    del metrics["test"]["with_products"]
    page = report(tmp_path, metrics=metrics)
    absent = {
        "With the products of the record",
        "Finding wrong inventory records",
        "Worst mistakes",
    }
    assert page.headings == [heading for heading in HEADINGS if heading not in absent]


def test_photos_with_products_stand_beside_all_photos_and_by_number_of_products(
    tmp_path: Path,
) -> None:
    page = report(tmp_path)
    with_products = METRICS["test"]["with_products"]
    both = with_products["photo_alone"], with_products
    alone, products = (f"{each['within_one']:.1%}".replace("%", " %") for each in both)
    assert f"Within one item {alone} {products}" in page.text
    assert "as many products is right for 50.0 % (95 % interval 44.0 to 56.0)" in page.text
    for number, share in METRICS["test"]["with_products"]["by_products"].items():
        assert f" {number} {share['photos']} {100 * share['value']:.1f} % " in page.text


def test_without_a_test_the_report_is_about_the_validation_photos(tmp_path: Path) -> None:
    metrics = make_metrics()
    metrics["validation"] = metrics.pop("test")
    page = report(tmp_path, metrics=metrics)
    assert "validated on 200 of them, which were held out" in page.text
    assert "tested on" not in page.text
    assert "Exact counts" in page.text


def test_the_page_loads_nothing_and_runs_nothing(tmp_path: Path) -> None:
    mistake = Mistake(id="1", jpeg=b"photo", count=1, predicted=2, probability=0.5)
    page = report(tmp_path, mistakes=[mistake])
    addresses = [value for name in ("src", "srcset", "href") for value in page.values(name)]
    assert len(addresses) == 5  # two plots for two backgrounds, one photo
    assert all(address.startswith("data:image/") for address in addresses)
    html = re.sub(r"base64,[\w+/=]*", "", (tmp_path / "report.html").read_text())
    for word in ("http", "//", "@import", "url("):
        assert word not in html
    assert "script" not in {tag for tag, _, _ in page.attributes}
    assert all(page.values("alt"))


def test_plots_are_drawn_for_light_and_for_dark(tmp_path: Path) -> None:
    page = report(tmp_path)
    for uri in (*page.values("src"), *page.values("srcset")):
        kind, _, content = uri.partition(";base64,")
        assert kind == "data:image/svg+xml"
        assert b"<svg" in base64.b64decode(content)
    assert page.values("src") != page.values("srcset")
    assert set(page.values("media")) == {"(prefers-color-scheme: dark)"}


def test_the_confusion_matrix_holds_every_photo_and_recall_every_count(tmp_path: Path) -> None:
    page = report(tmp_path)
    confusion = METRICS["test"]["confusion"]["rows_true_columns_predicted"]
    for count, row in zip(COUNTS, confusion, strict=True):
        assert f" {count} {' '.join(map(str, row))} " in page.text
        recall = METRICS["test"]["recall"][str(count)]
        value, low, high = (f"{100 * recall[key]:.1f}" for key in ("value", "low", "high"))
        assert f" {count} {recall['photos']} {value} % {low} to {high} " in page.text


def test_mistakes_are_shown_with_their_photos(tmp_path: Path) -> None:
    photos = [draw_photo(f"{number:05d}", 3, "a") for number in range(2)]
    mistakes = [
        Mistake(id=photo.id, jpeg=photo.jpeg, count=3, predicted=1, probability=0.876)
        for photo in photos
    ]
    page = report(tmp_path, mistakes=mistakes)
    shown = [uri for uri in page.values("src") if "image/jpeg" in uri]
    assert [base64.b64decode(uri.split(",")[1]) for uri in shown] == [one.jpeg for one in photos]
    for photo in photos:
        assert f"true 3 predicted 1, 88 % {photo.id}" in page.text


def test_the_command_can_be_pasted_into_a_shell(tmp_path: Path) -> None:
    page = report(tmp_path)
    (command,) = [text for tag, text in page.texts if tag == "pre"]
    assert shlex.split(command.replace("\\\n", "")) == COMMAND
    assert len(command.splitlines()) == 3


def test_the_time_is_split_into_loading_computing_and_the_rest(tmp_path: Path) -> None:
    page = report(tmp_path)
    assert "1.0 minutes, 42 photos/s at the end" in page.text
    assert "loading 6.0 s 10.0 % computing 45.0 s 75.0 % rest 9.0 s 15.0 %" in page.text


def test_dollars_and_warnings_are_said(tmp_path: Path) -> None:
    history = [line | {"dollars": line["epoch"] / 1000} for line in HISTORY]
    page = report(tmp_path, history=history)
    assert "Cost so far: $0.0060" in page.text
    assert "Warning" not in page.text
    history[2]["train_loss"] = math.nan
    assert (
        "Warning: the training loss was nan after step 300"
        in report(tmp_path, history=history).text
    )


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_run_whose_losses_are_not_finite_has_a_report(tmp_path: Path, loss: float) -> None:
    history = [line | {"train_loss": loss, "validation_loss": loss} for line in HISTORY]
    assert "Losses" in report(tmp_path, history=history).headings


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    report(tmp_path)
    first = (tmp_path / "report.html").read_bytes()
    report(tmp_path)
    assert (tmp_path / "report.html").read_bytes() == first


@pytest.fixture
def without_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots are not drawn, which takes most of the time of a report."""
    monkeypatch.setattr(report_module, "_plot", lambda _: Plot(light="data:,", dark="data:,"))


printable = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1)


@settings(
    deadline=None,
    max_examples=15,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(title=printable, name=printable, value=printable, photo_id=printable)
@example(title="<b>&amp;</b>", name="<i>", value="'\"</td>", photo_id='"><script>')
def test_whatever_is_written_is_shown_as_it_is(
    without_plots: None, tmp_path: Path, title: str, name: str, value: str, photo_id: str
) -> None:
    mistake = Mistake(id=photo_id, jpeg=b"", count=1, predicted=2, probability=0.5)
    page = report(
        tmp_path,
        title=title,
        settings={name: value},
        command=["train", title],
        mistakes=[mistake],
    )
    assert [text for tag, text in page.texts if tag in {"title", "h1"}] == [title, title]
    assert f"Settings {name} {value}" in page.text
    assert f"predicted 2, 50 % {photo_id}" in page.text
    assert f"Photo {photo_id}" in page.values("alt")


def test_the_loss_picture_follows_the_losses(tmp_path: Path) -> None:
    drawn = []
    for factor in (1.0, 0.5):
        history = [line | {"train_loss": line["train_loss"] * factor} for line in HISTORY]
        plot_loss(history, tmp_path / "loss.png")
        drawn.append((tmp_path / "loss.png").read_bytes())
    with Image.open(io.BytesIO(drawn[0])) as picture:
        assert picture.format == "PNG"
        assert picture.width > 300
    assert drawn[0] != drawn[1]
