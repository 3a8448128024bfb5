"""What a run to come takes and costs, and the bill of a machine."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.choices import Arch
from common.files import ROOT
from costs.estimate import (
    BOOT_SECONDS,
    estimate_training,
    format_bill,
    machine_bill,
    run_cost,
    total,
)
from costs.prices import Price, load_prices

PRICES = load_prices()


def test_an_hour_of_a_spot_machine_costs_machine_disk_and_address() -> None:
    machine, disk, address = run_cost(3600, "c7i.large", "spot", 73, PRICES)
    assert machine.dollars == pytest.approx(PRICES.machine_hour("c7i.large", "spot").dollars)
    assert disk.dollars == pytest.approx(73 / 730 * PRICES.other["gp3_gib_month"].dollars)
    assert address.dollars == pytest.approx(PRICES.other["public_ipv4_hour"].dollars)


def test_a_machine_that_ran_a_second_is_billed_a_minute() -> None:
    second, minute = (run_cost(s, "c7i.large", "spot", 30, PRICES) for s in (1, 60))
    assert second == minute


@given(seconds=st.floats(60, 1e6), volume=st.integers(1, 1000), dollars=st.floats(0, 100))
def test_the_lines_of_a_bill_add_up(seconds: float, volume: int, dollars: float) -> None:
    machine = Price(dollars, "2026-11-23", "test")
    lines = machine_bill(seconds, "machine", machine, volume, PRICES)
    assert all(line.dollars == pytest.approx(line.quantity * line.unit_price) for line in lines)
    assert total(lines) >= dollars * seconds / 3600


def test_an_estimate_grows_with_photos_and_states_its_basis() -> None:
    small = estimate_training(1000, "resnet50", 20, "c7i.large", PRICES)
    large = estimate_training(9000, "resnet50", 20, "c7i.large", PRICES)
    # 8,000 more photos, seen twice at 47/s, and 20 times by the head at 9,000/s.
    assert large.seconds - small.seconds == pytest.approx(2 * 8000 / 47 + 20 * 8000 / 9000)
    bill = run_cost(large.seconds, "c7i.large", "spot", 30, PRICES)
    assert large.dollars == pytest.approx(total(bill))
    for part in ("9,000 photos", "measured", PRICES.date, "not on c7i.large"):
        assert part in large.basis


@pytest.mark.parametrize(
    ("arch", "row"), [("resnet50", "One run:"), ("efficientnet_lite0", "The same with")]
)
def test_the_readme_says_what_is_estimated(arch: Arch, row: str) -> None:
    estimate = estimate_training(10_000, arch, 20, "c7i.large", PRICES)
    amount = f"{estimate.dollars:.4f} for about {estimate.seconds / 60:.0f} minutes"
    readme = (ROOT / "README.md").read_text()
    (line,) = [line for line in readme.splitlines() if line.startswith(f"| {row}")]
    assert arch in line
    assert amount in line


def test_a_bill_names_each_source_once() -> None:
    lines = run_cost(3600, "c7i.large", "spot", 30, PRICES)
    same = [dataclasses.replace(line, source="one source (2026-11-23)") for line in lines]
    printed = format_bill(same)
    assert printed.count("source: one source (2026-11-23)") == 1
    (row,) = [line for line in printed.splitlines() if line.startswith("total")]
    assert row.split()[-1] == f"{total(lines):.4f}"


def test_training_every_layer_takes_longer_and_no_time_for_features() -> None:
    head = estimate_training(9000, "resnet50", 10, "c7i.large", PRICES)
    every_layer = estimate_training(9000, "resnet50", 10, "c7i.large", PRICES, mode="finetune")
    assert every_layer.seconds > 5 * head.seconds
    assert every_layer.dollars > 5 * head.dollars
    assert "every layer" in every_layer.basis
    assert "features" not in every_layer.basis


def test_members_take_as_long_as_they_are_many() -> None:
    one, four = (
        estimate_training(
            9000, "resnet50", 10, "c7i.large", PRICES, mode="finetune", ensemble_size=n
        )
        for n in (1, 4)
    )
    assert four.seconds - BOOT_SECONDS == pytest.approx(4 * (one.seconds - BOOT_SECONDS))
    assert "10 epochs of 4 networks" in four.basis
