"""cost.json: each attempt at the price of its own machine."""

from datetime import UTC, datetime, timedelta

import pytest

from common.choices import Purchase
from common.run_record import VERSION, Attempt, Request
from costs.bill import run_bill
from costs.estimate import run_cost, total
from costs.prices import load_prices

START = datetime(2026, 1, 1, tzinfo=UTC)


def attempt(instance_type: str, minutes: int, purchase: Purchase = "spot") -> Attempt:
    end = START + timedelta(minutes=minutes)
    return Attempt(
        instance_id="i-1",
        instance_type=instance_type,
        zone="us-east-1a",
        purchase=purchase,
        started=START.isoformat(),
        ended=end.isoformat(),
        outcome="interrupted",
    )


REQUEST = Request(
    run_id="r1",
    dataset="photos",
    arch="resnet50",
    train_arguments=[],
    deadline="2099-01-01T00:00:00+00:00",
    estimate={"seconds": 600, "dollars": 0.01, "basis": "guessed"},
    mode="head",
    ensemble_size=1,
    version=VERSION,
    epochs=1,
    chunks=1,
    runtime="runtime/a/",
)


def bill(*attempts: Attempt) -> dict[str, object]:
    return run_bill(
        list(attempts),
        REQUEST,
        instance_type="c7i.large",
        volume_gib=30,
        prices=load_prices(),
    )


def job_bill(*attempts: Attempt) -> dict[str, object]:
    request = REQUEST | Request(service="sagemaker")  # type: ignore[typeddict-item]
    return run_bill(
        list(attempts),
        request,
        instance_type=attempts[-1]["instance_type"],
        volume_gib=30,
        prices=load_prices(),
    )


def price(instance_type: str, minutes: int, purchase: Purchase = "spot") -> float:
    return total(run_cost(minutes * 60, instance_type, purchase, 30, load_prices()))


def test_each_attempt_costs_what_its_own_type_costs() -> None:
    whole = bill(attempt("m7i.large", 30), attempt("c7i.large", 10))
    assert whole["dollars"] == pytest.approx(price("m7i.large", 30) + price("c7i.large", 10))
    assert whole["seconds"] == 40 * 60


def test_each_attempt_costs_what_it_was_bought_for() -> None:
    whole = bill(attempt("c7i.large", 30), attempt("c7i.large", 30, "on_demand"))
    assert whole["dollars"] == pytest.approx(
        price("c7i.large", 30) + price("c7i.large", 30, "on_demand")
    )


def test_two_machines_of_one_type_are_one_line() -> None:
    lines = bill(attempt("c7i.large", 30), attempt("c7i.large", 15))["lines"]
    assert isinstance(lines, list)
    assert lines[0]["name"] == "c7i.large, spot"
    assert lines[0]["quantity"] == pytest.approx(0.75)
    assert len(lines) == 3


def test_the_estimate_stands_beside_what_it_did_cost() -> None:
    assert bill(attempt("c7i.large", 10))["estimate"] == {"seconds": 600, "dollars": 0.01}


def test_one_type_without_a_price_makes_the_sum_unknown() -> None:
    whole = bill(attempt("c7i.large", 10), attempt("x9.huge", 10))
    assert whole["dollars"] is None
    assert "x9.huge" in str(whole["note"])


def test_a_run_without_an_attempt_cost_nothing() -> None:
    assert bill()["dollars"] == 0


def test_a_training_job_has_a_bill_of_the_same_form() -> None:
    job = attempt("ml.m5.large", 10) | Attempt(machines=2, billed_seconds=300.0)  # type: ignore[typeddict-item]
    whole = job_bill(job)
    assert whole.keys() == bill(attempt("c7i.large", 10)).keys()
    assert whole["instance_type"] == "ml.m5.large"
    assert whole["seconds"] == 2 * 300
    assert isinstance(whole["lines"], list)
    assert whole["dollars"] == pytest.approx(sum(line["dollars"] for line in whole["lines"]))
    assert whole["estimate"] == {"seconds": 600, "dollars": 0.01}


def test_a_training_job_without_a_price_makes_the_sum_unknown() -> None:
    whole = job_bill(attempt("ml.x9.huge", 10))
    assert whole["dollars"] is None
    assert "ml.x9.huge" in str(whole["note"])
