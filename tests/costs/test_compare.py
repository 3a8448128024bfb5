"""One run at four places, and where its record comes from."""

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.run_record import Attempt, RunRecord
from costs.__main__ import main
from costs.compare import Machine, PastRun, compare_run
from costs.estimate import run_cost, total
from costs.prices import PriceError, load_prices
from tests.support.deployed import choose, deploy_stacks

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

PRICES = load_prices()
START = datetime(2026, 1, 1, tzinfo=UTC)


def put(client: "S3Client", *machines: tuple[str, int], run: str = "r1", **cost: object) -> None:
    """The record of a run whose machines, each with its type, worked for so many seconds."""
    record = RunRecord(client, "ours", run)
    record.write("request.json", {"deadline": "2026-01-02T00:00:00+00:00"})
    attempts = [
        Attempt(
            instance_id="i-1",
            instance_type=instance_type,
            zone="us-east-1b",
            purchase="spot",
            started=START.isoformat(),
            ended=(START + timedelta(seconds=seconds)).isoformat(),
            outcome="interrupted",
        )
        for instance_type, seconds in machines
    ]
    record.set_status("succeeded", "", attempts)
    record.write("cost.json", {"volume_gib": 30} | cost)


def one(instance_type: str, seconds: float, volume_gib: int = 30) -> PastRun:
    return PastRun([Machine(instance_type, seconds)], volume_gib)


def dollars(run: PastRun) -> dict[str, float]:
    return {row.where: row.dollars for row in compare_run(run, PRICES)}


@given(seconds=st.floats(60, 1e6), volume=st.integers(1, 1000))
def test_spot_is_never_dearer_than_on_demand(seconds: float, volume: int) -> None:
    rows = dollars(one("m7i.large", seconds, volume))
    bill = run_cost(seconds, "m7i.large", "spot", volume, PRICES)
    assert rows["EC2 spot"] == pytest.approx(total(bill))
    assert rows["EC2 spot"] < rows["EC2 on demand"]
    assert rows["SageMaker managed spot"] < rows["SageMaker training"]


def test_each_machine_of_a_run_is_billed_by_itself() -> None:
    machines = [Machine("c7i.large", 10), Machine("m7i.large", 3600)]
    rows = dollars(PastRun(machines, 30))
    apart = dollars(one("c7i.large", 60)), dollars(one("m7i.large", 3600))
    assert rows["EC2 spot"] == pytest.approx(sum(each["EC2 spot"] for each in apart))
    ten_seconds = dollars(one("c7i.large", 10))["SageMaker managed spot"]
    hour = apart[1]["SageMaker managed spot"]
    assert rows["SageMaker managed spot"] == pytest.approx(ten_seconds + hour)


def test_managed_spot_gets_the_discount_of_ec2_spot() -> None:
    rows = dollars(one("c7i.large", 3600, 0))
    spot, on_demand = (PRICES.machine_hour("c7i.large", p).dollars for p in ("spot", "on_demand"))
    ratio = rows["SageMaker managed spot"] / rows["SageMaker training"]
    assert ratio == pytest.approx(spot / on_demand)


def test_the_original_project_stands_beside_the_run() -> None:
    spot, sagemaker = compare_run(one("c7i.large", 900), PRICES)[-2:]
    assert (spot.instance_type, spot.hours, spot.dollars) == ("t2.medium", 7, 0.35)
    assert (sagemaker.hours, sagemaker.dollars) == (None, 9.83)


def test_a_machine_that_sagemaker_does_not_have_is_refused() -> None:
    prices = load_prices()
    prices.ec2["x9.huge"] = prices.ec2["c7i.large"]  # type: ignore[index]
    with pytest.raises(PriceError, match=r"close to 'x9.huge'"):
        compare_run(one("x9.huge", 900), prices)


def test_the_record_of_a_run_is_read(
    client: "S3Client", capsys: pytest.CaptureFixture[str]
) -> None:
    put(client, ("m6i.large", 1800))
    main(["compare", "--run-id", "r1", "--bucket", "ours"])
    printed = capsys.readouterr().out
    assert "30.0 minutes on m6i.large" in printed
    assert f"source: m6i.large spot {PRICES.machine_hour('m6i.large', 'spot').dollars:g}" in printed


@pytest.mark.parametrize("model", ["s3://ours/runs/r2/model.tar.gz", "none"])
def test_without_a_name_the_run_is_the_newest_models(
    model: str, client: "S3Client", capsys: pytest.CaptureFixture[str]
) -> None:
    put(client, ("m6i.large", 1800), run="r2")
    deploy_stacks()
    choose(model)
    if model == "none":
        with pytest.raises(SystemExit):
            main(["compare"])
        assert "start one with `python -m training.launch`" in capsys.readouterr().err
    else:
        main(["compare"])
        assert "30.0 minutes on m6i.large" in capsys.readouterr().out


def test_it_shows_the_dollars_that_the_list_of_runs_shows(
    client: "S3Client", capsys: pytest.CaptureFixture[str]
) -> None:
    machines = [("c7i.large", 20), ("m7i.large", 1200)]
    put(client, *machines)
    main(["compare", "--run-id", "r1", "--bucket", "ours"])
    bills = [run_cost(seconds, type, "spot", 30, PRICES) for type, seconds in machines]
    printed = capsys.readouterr().out
    assert "This run: 20.3 minutes on c7i.large, m7i.large\n" in printed
    (row,) = [line for line in printed.splitlines() if line.startswith("EC2 spot")]
    assert f"  {sum(map(total, bills)):.4f}  machine" in row


def test_a_run_without_a_machine_is_one_line(
    client: "S3Client", capsys: pytest.CaptureFixture[str]
) -> None:
    put(client)
    with pytest.raises(SystemExit):
        main(["compare", "--run-id", "r1", "--bucket", "ours"])
    error = capsys.readouterr().err
    assert "no machine ever worked on run r1" in error
    assert error.count("\n") == 1
