"""What a run did cost: spot prices of its hours, training jobs, and the error of its estimate."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.stub import Stubber

from common.run_record import Attempt, RunRecord
from costs.__main__ import main
from costs.actual import error_percent, machine_lines
from costs.bill import job_lines
from costs.estimate import CostLine, total
from costs.prices import load_prices

if TYPE_CHECKING:
    from mypy_boto3_ec2 import EC2Client
    from mypy_boto3_s3 import S3Client

PRICES = load_prices()
START = datetime(2025, 6, 20, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def attempt(start: datetime, **more: Any) -> Attempt:
    usual = Attempt(
        instance_id="i-1",
        instance_type="c7i.large",
        zone="us-east-1b",
        purchase="spot",
        started=start.isoformat(),
    )
    return usual | more  # type: ignore[return-value]


@pytest.fixture
def ec2() -> Iterator[tuple["EC2Client", Stubber]]:
    client = boto3.client("ec2", region_name="us-east-1")
    with Stubber(client) as stub:
        yield client, stub
        stub.assert_no_pending_responses()


def answer(stub: Stubber, *changes: tuple[datetime, str]) -> None:
    history = [
        {"AvailabilityZone": "us-east-1b", "Timestamp": time, "SpotPrice": price}
        for time, price in changes
    ]
    stub.add_response("describe_spot_price_history", {"SpotPriceHistory": history})


def lines_of(client: "EC2Client", attempts: list[Attempt], *seconds: float) -> list[CostLine]:
    return machine_lines(client, attempts, list(seconds), volume_gib=30, prices=PRICES)


def test_a_machine_costs_the_spot_prices_of_its_hours(ec2: tuple["EC2Client", Stubber]) -> None:
    client, stub = ec2
    answer(stub, (START - HOUR, "0.02"), (START + HOUR, "0.06"))
    machine, disk, address = lines_of(client, [attempt(START, outcome="succeeded")], 2 * 3600)
    assert machine.dollars == pytest.approx(0.02 + 0.06)
    assert "DescribeSpotPriceHistory, c7i.large in us-east-1b" in machine.source
    assert "(2025-06-20)" in machine.source
    assert disk.dollars == pytest.approx(30 * 2 / 730 * PRICES.other["gp3_gib_month"].dollars)
    assert address.dollars == pytest.approx(2 * PRICES.other["public_ipv4_hour"].dollars)


def test_each_attempt_is_billed_by_itself(ec2: tuple["EC2Client", Stubber]) -> None:
    client, stub = ec2
    answer(stub, (START - HOUR, "0.02"))
    answer(stub, (START - HOUR, "0.05"))
    attempts = [attempt(START, outcome="failed"), attempt(START + HOUR, outcome="succeeded")]
    lines = lines_of(client, attempts, 1800, 3600)
    assert [line.dollars for line in lines[::3]] == pytest.approx([0.01, 0.05])
    assert [line.name[:2] for line in lines] == ["1:"] * 3 + ["2:"] * 3


def test_a_machine_taken_back_in_its_first_hour_is_free_but_not_its_disk(
    ec2: tuple["EC2Client", Stubber],
) -> None:
    client, _ = ec2  # is not asked
    machine, disk, address = lines_of(client, [attempt(START, outcome="interrupted")], 3599)
    assert machine.dollars == 0
    assert "first hour" in machine.source
    assert disk.dollars > 0
    assert address.dollars > 0


@pytest.mark.parametrize(
    ("outcome", "seconds"),
    [("interrupted", 3600.0), ("shut down", 600.0), ("lost", 600.0), ("failed", 600.0)],
)
def test_any_other_ending_is_paid_for(
    outcome: str, seconds: float, ec2: tuple["EC2Client", Stubber]
) -> None:
    client, stub = ec2
    answer(stub, (START - HOUR, "0.036"))
    machine = lines_of(client, [attempt(START, outcome=outcome)], seconds)[0]
    assert machine.dollars == pytest.approx(0.036 * seconds / 3600)


def test_hours_that_ec2_has_forgotten_take_the_price_file(
    ec2: tuple["EC2Client", Stubber],
) -> None:
    client, stub = ec2
    answer(stub)
    machine = lines_of(client, [attempt(START, outcome="succeeded")], 3600)[0]
    known = PRICES.machine_hour("c7i.large", "spot")
    assert machine.dollars == pytest.approx(known.dollars)
    assert "90 days" in machine.source
    assert known.source in machine.source


def test_on_demand_takes_the_price_file(ec2: tuple["EC2Client", Stubber]) -> None:
    client, _ = ec2  # is not asked
    attempts = [attempt(START, outcome="interrupted", purchase="on_demand")]
    machine = lines_of(client, attempts, 1800)[0]
    assert machine.dollars == PRICES.machine_hour("c7i.large", "on_demand").dollars / 2


def test_a_run_resumed_on_demand_is_billed_as_each_machine_was_bought(
    ec2: tuple["EC2Client", Stubber],
) -> None:
    client, stub = ec2
    answer(stub, (START - HOUR, "0.02"))  # is asked once
    attempts = [attempt(START), attempt(START + HOUR, purchase="on_demand")]
    spot, on_demand = lines_of(client, attempts, 3600, 3600)[::3]
    assert spot.name == "1: c7i.large, spot, us-east-1b"
    assert spot.dollars == pytest.approx(0.02)
    assert on_demand.name == "2: c7i.large, on-demand, us-east-1b"
    assert on_demand.dollars == PRICES.machine_hour("c7i.large", "on_demand").dollars


def job(**more: Any) -> Attempt:
    """A training job on two machines that was interrupted for a while."""
    usual: dict[str, Any] = {
        "instance_id": "job",
        "instance_type": "ml.m5.large",
        "machines": 2,
        "ended": (START + HOUR).isoformat(),
        "billed_seconds": 900.0,
        "outcome": "succeeded",
    }
    return attempt(START, **usual | more)


def test_a_training_job_costs_its_billed_seconds_on_each_machine() -> None:
    machine, disk = job_lines([job()], volume_gib=73, prices=PRICES)
    assert "2 × ml.m5.large, managed spot" in machine.name
    hour = PRICES.sagemaker_training["ml.m5.large"].dollars
    assert machine.dollars == pytest.approx(2 * 900 / 3600 * hour)
    month = PRICES.other["sagemaker_volume_gib_month"].dollars
    assert disk.dollars == pytest.approx(2 * 73 / 730 * month)
    (on_demand, _) = job_lines([job(purchase="on_demand")], volume_gib=73, prices=PRICES)
    assert "spot" not in on_demand.name


def put_job(client: "S3Client", run: str, *attempts: Attempt, **cost: Any) -> RunRecord:
    record = put_run(client, run, "succeeded", *attempts, **cost)
    record.write("request.json", record.request() | {"service": "sagemaker"})
    return record


def test_a_run_on_sagemaker_is_billed_from_its_own_record(
    client: "S3Client", capsys: pytest.CaptureFixture[str]
) -> None:
    record = put_job(client, "r1", job(), **COST)
    main(["actual", "r1", "--bucket", "ours"])
    actual = record.read("cost.json")["actual"]
    bill = total(job_lines([job()], volume_gib=COST["volume_gib"], prices=PRICES))
    assert actual["dollars"] == pytest.approx(bill)
    assert actual["seconds"] == 2 * 900
    assert actual["estimate"]["seconds"] == 2 * 572, "of both machines as well"
    printed = capsys.readouterr().out
    assert "2 × ml.m5.large, managed spot, billed" in printed


def test_a_run_of_two_training_jobs_is_billed_for_both(client: "S3Client") -> None:
    jobs = [job(outcome="failed"), job(billed_seconds=300.0)]
    record = put_job(client, "r1", *jobs, **COST)
    main(["actual", "r1", "--bucket", "ours"])
    actual = record.read("cost.json")["actual"]
    assert actual["seconds"] == 2 * (900 + 300)
    assert len(actual["lines"]) == 4


def test_a_run_on_sagemaker_without_a_bill_gets_one(
    client: "S3Client", capsys: pytest.CaptureFixture[str]
) -> None:
    record = put_job(client, "r1", job())
    main(["actual", "r1", "--bucket", "ours"])
    cost = record.read("cost.json")
    assert cost["dollars"] == pytest.approx(cost["actual"]["dollars"])
    assert "a disk of 30 GiB is assumed" in capsys.readouterr().out


def test_the_error_is_how_much_too_high_the_estimate_was() -> None:
    assert error_percent(0.012, 0.010) == pytest.approx(20)
    assert error_percent(0.008, 0.010) == pytest.approx(-20)
    assert error_percent(0.008, 0) is None


def put_run(client: "S3Client", run: str, state: str, *attempts: Attempt, **cost: Any) -> RunRecord:
    record = RunRecord(client, "ours", run)
    estimate = {"seconds": 572.0, "dollars": 0.008, "basis": "measured"}
    deadline = (START + 3 * HOUR).isoformat()
    record.write("request.json", {"run_id": run, "deadline": deadline, "estimate": estimate})
    record.set_status(state, "", list(attempts))  # type: ignore[arg-type]
    if cost:
        record.write("cost.json", cost)
    return record


ENDED = {"ended": (START + HOUR).isoformat(), "outcome": "succeeded"}
COST = {"volume_gib": 30, "seconds": 3600, "instance_type": "c7i.large"}


def test_the_actual_cost_stands_beside_the_estimate_and_stays_in_the_record(
    client: "S3Client", capsys: pytest.CaptureFixture[str]
) -> None:
    record = put_run(client, "r1", "succeeded", attempt(START, **ENDED), **COST)
    main(["actual", "r1", "--bucket", "ours"])
    printed = capsys.readouterr().out
    cost = record.read("cost.json")
    actual = cost["actual"]
    # moto's spot price is 0.00001 an hour, in every zone and at all times
    lines = {line["name"]: line["dollars"] for line in actual["lines"]}
    assert lines["1: c7i.large, spot, us-east-1b"] == pytest.approx(0.00001)
    assert actual["dollars"] == pytest.approx(sum(lines.values()))
    assert actual["estimate"] == {"seconds": 572.0, "dollars": 0.008}
    assert actual["error_percent"] == pytest.approx(100 * (0.008 / actual["dollars"] - 1))
    assert cost["instance_type"] == "c7i.large"  # what the machine wrote stays
    rows = {row[0]: row[1:] for row in map(str.split, printed.splitlines()) if len(row) > 2}
    assert rows["estimate"][:2] == ["9.5", "0.0080"]
    assert rows["actual"] == ["60.0", f"{actual['dollars']:.4f}"]


def test_a_run_whose_machine_wrote_no_bill_gets_one(
    client: "S3Client", capsys: pytest.CaptureFixture[str]
) -> None:
    record = put_run(client, "r1", "failed", attempt(START, outcome="lost"))
    main(["actual", "r1", "--bucket", "ours"])
    cost = record.read("cost.json")
    assert cost["actual"]["seconds"] == 3 * 3600  # nobody saw its end: until the deadline
    assert "note: no machine wrote this" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("state", "attempts", "message"),
    [
        ("running", [attempt(START)], "run r1 is running: it can be billed once it has ended"),
        ("failed", [], "no machine ever worked on run r1"),
    ],
)
def test_a_run_without_a_bill_is_one_line(
    state: str,
    attempts: list[Attempt],
    message: str,
    client: "S3Client",
    capsys: pytest.CaptureFixture[str],
) -> None:
    put_run(client, "r1", state, *attempts)
    with pytest.raises(SystemExit):
        main(["actual", "r1", "--bucket", "ours"])
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_accuracy_lists_every_run_and_the_median_error(
    client: "S3Client", capsys: pytest.CaptureFixture[str]
) -> None:
    for run, dollars in (("r1", 0.010), ("r2", 0.008), ("r3", 0.005)):
        actual = {
            "seconds": 600,
            "dollars": dollars,
            "estimate": {"seconds": 540, "dollars": 0.008},
            "error_percent": error_percent(0.008, dollars),
        }
        put_run(client, run, "succeeded", attempt(START, **ENDED), **COST, actual=actual)
    put_run(client, "r4", "succeeded", attempt(START, **ENDED), **COST)
    put_run(client, "r5", "succeeded", attempt(START, **ENDED))  # its bill failed
    for state in ("failed", "stopped"):  # after a tenth of the work
        short = {"seconds": 54, "dollars": 0.0008, "error_percent": 900}
        put_run(client, state, state, attempt(START, **ENDED), **COST, actual=actual | short)
    main(["accuracy", "--bucket", "ours"])
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines()]
    assert ["r1", "9.0", "10.0", "0.0080", "0.0100", "-20", "%"] in rows
    assert ["r3", "9.0", "10.0", "0.0080", "0.0050", "+60", "%"] in rows
    assert "median error of 3 runs: 20 %" in printed  # of 20, 0 and 60
    assert "not billed yet, run `python -m costs actual RUN`: r4, r5\n" in printed
    assert "stopped" not in printed
    assert "failed" not in printed


def test_accuracy_knows_runs_at_both_places(
    client: "S3Client", capsys: pytest.CaptureFixture[str]
) -> None:
    put_run(client, "r1", "succeeded", attempt(START, **ENDED), **COST)
    put_job(client, "r2", job(), **COST)
    for run in ("r1", "r2"):
        main(["actual", run, "--bucket", "ours"])
    capsys.readouterr()
    main(["accuracy", "--bucket", "ours"])
    rows = [line.split()[:3] for line in capsys.readouterr().out.splitlines()]
    assert ["r1", "9.5", "60.0"] in rows
    assert ["r2", "19.1", "30.0"] in rows, "minutes of both machines"


def test_accuracy_before_the_first_actual_cost_says_what_to_do(
    client: "S3Client", capsys: pytest.CaptureFixture[str]
) -> None:
    put_run(client, "r4", "succeeded", attempt(START, **ENDED), **COST)
    with pytest.raises(SystemExit):
        main(["accuracy", "--bucket", "ours"])
    assert "python -m costs actual RUN`: r4" in capsys.readouterr().err


def test_cost_explorer_is_asked_only_on_request(
    client: "S3Client", capsys: pytest.CaptureFixture[str]
) -> None:
    put_run(client, "r1", "succeeded", attempt(START, **ENDED), **COST)
    main(["actual", "r1", "--bucket", "ours"])
    assert "Cost Explorer" not in capsys.readouterr().out
    main(["actual", "r1", "--bucket", "ours", "--cost-explorer"])
    assert "Cost Explorer: nothing with the tag project=bin-counter on 2025-06-20" in (
        capsys.readouterr().out
    )


def test_a_damaged_record_is_one_line(
    client: "S3Client", capsys: pytest.CaptureFixture[str]
) -> None:
    put_run(client, "r4", "succeeded", attempt(START, **ENDED)).write("cost.json", ["actual"])
    for command in (["accuracy"], ["actual", "r4"]):
        with pytest.raises(SystemExit):
            main([*command, "--bucket", "ours"])
        error = capsys.readouterr().err
        assert "runs/r4/cost.json is damaged" in error
        assert error.count("\n") == 1


def test_the_bill_of_a_job_on_sagemaker_has_the_days_of_the_job(
    client: "S3Client", capsys: pytest.CaptureFixture[str]
) -> None:
    put_job(client, "r1", job(), **COST)
    main(["actual", "r1", "--bucket", "ours", "--cost-explorer"])
    assert "on 2025-06-20;" in capsys.readouterr().out
