"""One training on EC2 and on SageMaker, compared by the records of both runs."""

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from costs.__main__ import main
from costs.compare import compare_run, measured_runs, past_run
from costs.prices import load_prices
from costs.twin import find_twin
from training.run_record import Attempt, RunRecord

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

PRICES = load_prices()
START = datetime(2026, 1, 1, tzinfo=UTC)
WORK = {
    "dataset": "bins",
    "arch": "resnet50",
    "mode": "head",
    "members": 1,
    "epochs": 20,
    "train_arguments": ["--dropout", "0.5"],
}


def put(
    client: "S3Client",
    run: str,
    *,
    sagemaker: bool,
    dollars: float | None,
    accuracy: float = 0.4,
    state: Any = "succeeded",
    **request: Any,
) -> RunRecord:
    record = RunRecord(client, "ours", run)
    service = {"service": "sagemaker"} if sagemaker else {}
    deadline = {"deadline": "2026-01-02T00:00:00+00:00"}
    record.write("request.json", WORK | deadline | service | request)
    attempt = Attempt(
        instance_id="one",
        instance_type="ml.m5.large" if sagemaker else "c7i.large",
        zone="us-east-1",
        purchase="spot",
        started=START.isoformat(),
        ended=(START + timedelta(minutes=30)).isoformat(),
        outcome="succeeded",
    )
    if sagemaker:
        attempt |= {"machines": 2, "billed_seconds": 600.0}
    record.set_status(state, "", [attempt])
    record.write("cost.json", {"volume_gib": 30, "dollars": dollars})
    record.write("metrics.json", {"test": {"accuracy": {"value": accuracy}}})
    return record


@pytest.mark.parametrize("asked", ["r1-ec2", "r2-sagemaker"])
def test_both_are_shown_whichever_is_asked_for(
    asked: str, client: "S3Client", capsys: pytest.CaptureFixture[str]
) -> None:
    put(client, "r1-ec2", sagemaker=False, dollars=0.01, accuracy=0.41)
    put(client, "r2-sagemaker", sagemaker=True, dollars=0.05, accuracy=0.42)
    main(["compare", "--run-id", asked, "--bucket", "ours"])
    printed = capsys.readouterr().out
    rows = [line for line in printed.splitlines() if "measured: run" in line]
    assert len(rows) == 2
    assert rows[0].split()[:5] == ["EC2", "spot", "c7i.large", "0.50", "0.0100"]
    assert "run r1-ec2, 41.0% exact" in rows[0]
    assert rows[1].split() == [
        *("SageMaker", "managed", "spot", "2", "×", "ml.m5.large", "0.33", "0.0500"),
        *("measured:", "run", "r2-sagemaker,", "42.0%", "exact"),
    ]
    assert "5.0 times as much on SageMaker managed spot as on EC2 spot" in printed
    assert "EC2 on demand" in printed, "what nobody tried is worked out as ever"


def test_what_was_measured_is_not_assumed_as_well(client: "S3Client") -> None:
    record = put(client, "r1", sagemaker=False, dollars=0.01)
    put(client, "r2", sagemaker=True, dollars=0.05)
    rows = compare_run(past_run(record, PRICES), PRICES, measured_runs(record))
    assert [row.where for row in rows[:4]] == [
        "EC2 spot",
        "SageMaker managed spot",
        "EC2 on demand",
        "SageMaker training",
    ]
    assert [row.measured for row in rows[:4]] == [True, True, False, False]


def test_the_newest_run_with_the_same_work_is_taken(client: "S3Client") -> None:
    record = put(client, "r1", sagemaker=False, dollars=0.01)
    put(client, "r2", sagemaker=True, dollars=0.05)
    put(client, "r3", sagemaker=True, dollars=0.05)
    put(client, "r4", sagemaker=True, dollars=0.05, epochs=40)
    put(client, "r5", sagemaker=True, dollars=0.05, train_arguments=[])
    put(client, "r6", sagemaker=True, dollars=0.05, state="failed")
    put(client, "r7", sagemaker=False, dollars=0.05)
    twin = find_twin(record)
    assert twin
    assert twin.run_id == "r3"


def test_without_a_run_there_it_is_assumed_as_ever(client: "S3Client") -> None:
    record = put(client, "r1", sagemaker=False, dollars=0.01)
    assert measured_runs(record) == []
    rows = compare_run(past_run(record, PRICES), PRICES)
    assert not any(row.measured for row in rows)


def test_a_run_on_sagemaker_alone_is_compared_with_the_machine_it_stands_for(
    client: "S3Client",
) -> None:
    record = put(client, "r1", sagemaker=True, dollars=0.05)
    run = past_run(record, PRICES)
    assert run.instance_types == ["c7i.large"]
    assert run.seconds == 2 * 600


def test_a_bill_that_failed_is_not_compared(client: "S3Client") -> None:
    record = put(client, "r1", sagemaker=False, dollars=0.01)
    put(client, "r2", sagemaker=True, dollars=None)
    assert [each.run_id for each in measured_runs(record)] == ["r1"]
