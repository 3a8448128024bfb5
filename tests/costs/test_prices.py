"""The price file: every figure has a date and a source, and damage is one line."""

import json
import re
from datetime import date
from pathlib import Path

import pytest

from costs.compare import Machine, PastRun, compare_run
from costs.prices import PRICES_FILE, PriceError, load_prices
from infra.config import MACHINE_DEFAULTS, Config

PRICES = load_prices()


def test_every_figure_has_a_date_and_a_source() -> None:
    tables = [*PRICES.ec2.values(), PRICES.sagemaker_training, PRICES.sagemaker_hosting]
    for prices in [*tables, PRICES.other]:
        for price in prices.values():
            assert price.dollars > 0
            assert date(2020, 1, 1) < date.fromisoformat(price.date) <= date.today()
            assert price.source
            assert price.basis == f"{price.source} ({price.date})"
    for allowance in PRICES.free_each_month.values():
        assert allowance.units > 0
        assert date.fromisoformat(allowance.date)


def test_every_source_is_used() -> None:
    content = json.loads(PRICES_FILE.read_text())
    for name in content.pop("sources"):
        assert f'"{name}"' in json.dumps(content), name


def test_what_is_free_each_month_has_a_price() -> None:
    assert set(PRICES.free_each_month) <= set(PRICES.other)


def test_every_default_machine_has_its_prices() -> None:
    for machines in MACHINE_DEFAULTS.values():
        for instance_type in machines["instance_types"]:  # type: ignore[attr-defined]
            assert len(compare_run(PastRun([Machine(instance_type, 900)], 30), PRICES)) == 6
    endpoint = Config.from_context({}).endpoint_instance_type
    assert PRICES.sagemaker_hour(endpoint, "hosting").dollars > 0


def test_a_machine_without_a_price_is_refused_by_name() -> None:
    with pytest.raises(PriceError, match=r"no spot price for 't2.medium'.*known: c7i.large"):
        PRICES.machine_hour("t2.medium", "spot")
    with pytest.raises(PriceError, match=r"no hosting price for 'ml.x9'.*known: ml.m5.large"):
        PRICES.sagemaker_hour("ml.x9", "hosting")


def test_a_price_without_a_known_source_is_refused(tmp_path: Path) -> None:
    content = json.loads(PRICES_FILE.read_text())
    content["other"]["gp3_gib_month"] = [0.08, "2026-11-23", "a friend"]
    file = tmp_path / "prices.json"
    file.write_text(json.dumps(content))
    with pytest.raises(PriceError, match="a friend"):
        load_prices(file)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"sources": {}}'])
def test_a_damaged_price_file_is_one_line(text: str, tmp_path: Path) -> None:
    file = tmp_path / "prices.json"
    file.write_text(text)
    with pytest.raises(PriceError, match="is not a price file") as caught:
        load_prices(file)
    assert re.fullmatch(r"[^\n]*", str(caught.value))
