"""What a run cost: its machines' hours at the prices of those hours, beside the estimate."""

from dataclasses import asdict, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import boto3

from common.run_record import (
    ENDED,
    Attempt,
    Request,
    RunRecord,
    billed_seconds,
    close_last_attempt,
    utc_now,
)
from common.storage import list_keys
from common.table import money, table
from costs.bill import job_lines, run_bill
from costs.cost_explorer import billed
from costs.estimate import DEFAULT_VOLUME_GIB, CostLine, format_bill, machine_bill, total
from costs.prices import Price, Prices
from costs.runs import find_run, read
from costs.spot_prices import mean_price, spot_history

if TYPE_CHECKING:
    from mypy_boto3_ec2 import EC2Client

FREE_HOUR = timedelta(hours=1)
FREE_HOUR_SOURCE = (
    "AWS charges nothing for a spot machine that it interrupts in its first hour "
    "(docs.aws.amazon.com/AWSEC2/latest/UserGuide/billing-for-interrupted-spot-instances.html)"
)


def machine_lines(
    ec2: "EC2Client",
    attempts: list[Attempt],
    seconds: list[float],
    *,
    volume_gib: int,
    prices: Prices,
) -> list[CostLine]:
    """Each machine's bill, a spot machine at its zone's prices while it ran, one on demand at the
    price file's.

    Raises PriceError for a machine without a price in either.
    """
    lines = []
    for number, (attempt, paid) in enumerate(zip(attempts, seconds, strict=True), start=1):
        hour = _machine_hour(ec2, attempt, paid, prices)
        purchase = attempt["purchase"].replace("_", "-")
        label = f"{attempt['instance_type']}, {purchase}, {attempt['zone']}"
        for line in machine_bill(paid, label, hour, volume_gib, prices):
            lines.append(replace(line, name=f"{number}: {line.name}"))
    return lines


def _machine_hour(ec2: "EC2Client", attempt: Attempt, seconds: float, prices: Prices) -> Price:
    """The mean price of the attempt's hours."""
    instance_type, zone, purchase = attempt["instance_type"], attempt["zone"], attempt["purchase"]
    if purchase == "on_demand":
        return prices.machine_hour(instance_type, purchase)
    start = datetime.fromisoformat(attempt["started"])
    length = timedelta(seconds=seconds)
    if attempt.get("outcome") == "interrupted" and length < FREE_HOUR:
        return Price(0.0, "2026-11-23", FREE_HOUR_SOURCE)
    changes = spot_history(ec2, instance_type, start, start + length, zone).get(zone)
    if not changes:
        usual = prices.machine_hour(instance_type, purchase)
        unknown = f"EC2 has no spot price of {zone} for these hours (it keeps 90 days); instead: "
        return replace(usual, source=unknown + usual.source)
    return Price(
        mean_price(changes, start, start + length),
        f"{start:%Y-%m-%d}",
        f"EC2 DescribeSpotPriceHistory, {instance_type} in {zone}, mean while it ran",
    )


def find_actual(record: RunRecord, prices: Prices) -> dict[str, Any]:
    """cost.json of a run that has ended, with what it cost under `actual`.

    Raises ValueError for a run that has not ended, or that never had a machine.
    """
    status = read(record, "status.json")
    attempts = status["attempts"]
    if status["state"] not in ENDED:
        raise ValueError(
            f"run {record.run_id} is {status['state']}: it can be billed once it has ended"
        )
    if not attempts:
        raise ValueError(f"no machine ever worked on run {record.run_id}: it cost nothing")
    request = record.request()
    cost = _cost_record(record, attempts, request, prices)
    volume_gib = cost["volume_gib"]
    seconds = billed_seconds(attempts, request)
    if request.get("service") == "sagemaker":
        lines = job_lines(attempts, volume_gib=volume_gib, prices=prices)
    else:
        ec2 = boto3.client("ec2")
        lines = machine_lines(ec2, attempts, seconds, volume_gib=volume_gib, prices=prices)
    dollars = total(lines)
    estimate = cost.get("estimate") or request["estimate"]
    # As the actual seconds: those of all machines together.
    expected = attempts[-1].get("machines", 1) * estimate["seconds"]
    actual = {
        "computed": utc_now(),
        "seconds": sum(seconds),
        "dollars": dollars,
        "lines": [asdict(line) for line in lines],
        "estimate": {"seconds": expected, "dollars": estimate["dollars"]},
        "error_percent": error_percent(estimate["dollars"], dollars),
    }
    return cost | {"actual": actual}


def _cost_record(
    record: RunRecord, attempts: list[Attempt], request: Request, prices: Prices
) -> dict[str, Any]:
    """cost.json; where the last machine could not write it, computed here with the default disk."""
    key = record.key("cost.json")
    if key in list_keys(record.s3, record.bucket, key):
        return read(record, "cost.json")
    made = run_bill(
        attempts,
        request,
        instance_type=attempts[-1]["instance_type"],
        volume_gib=DEFAULT_VOLUME_GIB,
        prices=prices,
    )
    return made | {"note": f"no machine wrote this: a disk of {DEFAULT_VOLUME_GIB} GiB is assumed"}


def print_actual(
    bucket: str | None, run_id: str | None, prices: Prices, *, cost_explorer: bool = False
) -> None:
    """Print what `python -m costs actual` shows, and store it in the run's cost.json.

    With `cost_explorer`, print what AWS billed for the days of the run as well.
    """
    record = find_run(bucket, run_id)
    cost = find_actual(record, prices)
    record.write("cost.json", cost)
    actual = cost["actual"]
    print(f"run {record.run_id}\n")
    print(format_bill([CostLine(**line) for line in actual["lines"]]))
    if "note" in cost:
        print(f"note: {cost['note']}")
    rows = [
        [name, f"{of['seconds'] / 60:.1f}", money(of["dollars"]), describe_error(error)]
        for name, of, error in (
            ("estimate", actual["estimate"], actual["error_percent"]),
            ("actual", actual, None),
        )
    ]
    print("\n" + table(["", "minutes", "$", "error"], rows))
    if cost_explorer:
        _print_bill_of_days(
            close_last_attempt(record.status()["attempts"], record.request(), "lost")
        )
    print(f"\nstored in {record.uri('cost.json')}")


def error_percent(estimate: float, actual: float) -> float | None:
    """How much too high the estimate was, in percent of the actual cost; None if that is 0."""
    return 100 * (estimate / actual - 1) if actual else None


def describe_error(percent: float | None) -> str:
    """The error for a person, such as `+12 %`."""
    return "" if percent is None else f"{percent:+.0f} %"


def _print_bill_of_days(attempts: list[Attempt]) -> None:
    """Print Cost Explorer's days from the first machine's start to the last one's end."""
    first, last = (
        datetime.fromisoformat(moment).date()
        for moment in (attempts[0]["started"], attempts[-1]["ended"])
    )
    # Cost Explorer has one address for all regions.
    services, remark = billed(boto3.client("ce", region_name="us-east-1"), first, last)
    print(f"\n{remark}")
    if services:
        rows = [[name, money(dollars)] for name, dollars in sorted(services.items())]
        print(table(["service", "$"], rows))
