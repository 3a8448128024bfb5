"""One training on EC2 and on SageMaker, compared by the records of both runs."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from matplotlib.figure import Figure

from common.choices import Purchase
from common.run_record import Attempt, RunRecord
from costs.__main__ import main
from costs.compare import ComparisonRow, compare_run, measured_runs, past_run
from costs.prices import load_prices
from costs.twin import find_twin

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

PRICES = load_prices()
START = datetime(2026, 1, 1, tzinfo=UTC)
WORK = {
    "dataset": "bins",
    "arch": "resnet50",
    "mode": "head",
    "ensemble_size": 1,
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
    purchase: Purchase = "spot",
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
        purchase=purchase,
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


def compared(record: RunRecord, named: str | None = None) -> dict[str, ComparisonRow]:
    rows = compare_run(past_run(record, PRICES), PRICES, measured_runs(record, PRICES, named))
    return {row.where: row for row in rows[:-2]}  # without the original project's


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
    assert "The same training on EC2 spot and on SageMaker managed spot\n" in printed
    assert "on SageMaker managed spot cost 5.0 times as much as the one on EC2 spot." in printed
    assert "source: EC2 spot: cost.json of run r1-ec2" in printed


@pytest.mark.parametrize("asked", ["r1", "r2"])
def test_what_nobody_tried_is_worked_out_from_what_was_measured_there(
    asked: str, client: "S3Client"
) -> None:
    put(client, "r1", sagemaker=False, dollars=0.01)
    put(client, "r2", sagemaker=True, dollars=0.05)
    rows = compared(RunRecord(client, "ours", asked))
    assert [*rows] == ["EC2 spot", "SageMaker managed spot", "EC2 on demand", "SageMaker training"]
    assert [row.measured for row in rows.values()] == [True, True, False, False]
    assert rows["EC2 on demand"].note == "assumed: taking as long: machine, disk, public IPv4"
    assert rows["SageMaker training"].note == "assumed: taking as long"
    assert rows["EC2 on demand"].hours == 0.5
    assert rows["SageMaker training"].hours == 2 * 0.5, "on demand, all of the time is billed"


def test_the_dollars_are_those_that_were_asked_for_later(client: "S3Client") -> None:
    record = put(client, "r1", sagemaker=False, dollars=0.01)
    put(client, "r2", sagemaker=True, dollars=0.05)
    record.write("cost.json", record.read("cost.json") | {"actual": {"dollars": 0.007}})
    assert compared(record)["EC2 spot"].dollars == 0.007


def test_runs_on_demand_are_shown_as_such(client: "S3Client") -> None:
    record = put(client, "r1", sagemaker=False, dollars=0.03, purchase="on_demand")
    put(client, "r2", sagemaker=True, dollars=0.05, purchase="on_demand")
    measured = [where for where, row in compared(record).items() if row.measured]
    assert measured == ["EC2 on demand", "SageMaker training"]


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


def test_a_run_that_is_named_is_taken_and_what_it_did_otherwise_is_told(
    client: "S3Client", capsys: pytest.CaptureFixture[str]
) -> None:
    put(client, "r1", sagemaker=False, dollars=0.01)
    put(client, "r2", sagemaker=True, dollars=0.05, epochs=40, train_arguments=[])
    put(client, "r3", sagemaker=True, dollars=0.07)
    main(["compare", "--run-id", "r1", "--with", "r2", "--bucket", "ours"])
    printed = capsys.readouterr().out
    assert (
        "Not the same training on EC2 spot and on SageMaker managed spot: "
        "epochs 20 and 40; train_arguments --dropout 0.5 and none\n"
    ) in printed
    assert "measured: run r2" in printed
    assert "r3" not in printed


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--run-id", "r1", "--with", "r2"], "run r2 was on the same service as run r1"),
        (["--run-id", "r1", "--with", "r3"], "no price of run r1 or of r3"),
        (["--run-id", "r1", "--with", "r9"], "runs/r9/request.json does not exist"),
        (["--seconds", "600", "--with", "r3"], "give either --seconds, or runs"),
    ],
)
def test_a_run_that_cannot_stand_beside_is_one_line(
    flags: list[str], message: str, client: "S3Client", capsys: pytest.CaptureFixture[str]
) -> None:
    put(client, "r1", sagemaker=False, dollars=0.01)
    put(client, "r2", sagemaker=False, dollars=0.05)
    put(client, "r3", sagemaker=True, dollars=None)
    with pytest.raises(SystemExit):
        main(["compare", *flags, "--bucket", "ours"])
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("tried", [False, True])
def test_without_a_bill_there_it_is_worked_out_as_ever(tried: bool, client: "S3Client") -> None:
    record = put(client, "r1", sagemaker=False, dollars=0.01)
    if tried:
        put(client, "r2", sagemaker=True, dollars=None)
    assert measured_runs(record, PRICES) == []
    assert compared(record)["EC2 spot"].note == "machine, disk, public IPv4"


def test_a_run_on_sagemaker_alone_is_compared_with_the_machine_it_stands_for(
    client: "S3Client", capsys: pytest.CaptureFixture[str]
) -> None:
    record = put(client, "r1", sagemaker=True, dollars=0.05)
    rows = compared(record)
    assert [where for where, row in rows.items() if row.measured] == ["SageMaker managed spot"]
    spot = rows["EC2 spot"]
    assert (spot.instance_type, spot.hours) == ("c7i.large", 2 * 0.5)
    assert spot.note.startswith("assumed: the closest type")
    main(["compare", "--run-id", "r1", "--bucket", "ours"])
    assert "This run: 20.0 minutes paid on 2 × ml.m5.large\n" in capsys.readouterr().out


def test_a_machine_that_ec2_does_not_have_is_compared_by_the_run_there(client: "S3Client") -> None:
    record = put(client, "r1", sagemaker=True, dollars=0.05)
    status = record.status()
    status["attempts"][0]["instance_type"] = "ml.c5.xlarge"
    record.write("status.json", status)
    put(client, "r2", sagemaker=False, dollars=0.01)
    rows = compared(record)
    assert rows["EC2 on demand"].instance_type == "c7i.large"
    assert rows["SageMaker training"].instance_type == "ml.c5.xlarge"


def test_the_bars_of_the_chart_say_what_was_measured(
    client: "S3Client", monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    put(client, "r1", sagemaker=False, dollars=0.01)
    put(client, "r2", sagemaker=True, dollars=0.05)
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    chart = str(tmp_path / "costs.png")
    main(["compare", "--run-id", "r1", "--bucket", "ours", "--chart", chart])
    bars = [label.get_text() for label in drawn[0].axes[0].get_yticklabels()]
    assert bars[::-1] == [
        "EC2 spot\nc7i.large, measured",
        "SageMaker managed spot\n2 × ml.m5.large, measured",
        "EC2 on demand\nc7i.large, assumed",
        "SageMaker training\nml.m5.large, assumed",
    ]
