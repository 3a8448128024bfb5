"""cost.json: what a run's machines cost, beside the estimate."""

from collections.abc import Iterable
from dataclasses import asdict, replace
from datetime import datetime
from typing import Any

from common.run_record import Attempt, Request, billed_seconds
from costs.estimate import HOURS_PER_MONTH, CostLine, cost_line, run_cost, total
from costs.prices import PriceError, Prices


def run_bill(
    attempts: list[Attempt],
    request: Request,
    *,
    instance_type: str,
    volume_gib: int,
    prices: Prices,
) -> dict[str, Any]:
    """Each attempt at the price of its own machine, and the sum.

    `instance_type` is that of the machine which ends the run. Without a price for one of the
    types, `dollars` is None and `note` says so: that is no reason to lose a finished model.
    """
    seconds = billed_seconds(attempts, request)
    estimate = {name: request["estimate"].get(name) for name in ("seconds", "dollars")}
    bill: dict[str, Any] = {
        "instance_type": instance_type,
        "seconds": sum(seconds),
        "volume_gib": volume_gib,
        "prices_date": prices.date,
        "estimate": estimate,
    }
    try:
        if request.get("service") == "sagemaker":
            lines = job_lines(attempts, volume_gib=volume_gib, prices=prices)
        else:
            lines = _add_up(
                line
                for attempt, paid in zip(attempts, seconds, strict=True)
                for line in run_cost(
                    paid, attempt["instance_type"], attempt["purchase"], volume_gib, prices
                )
            )
    except PriceError as error:
        return bill | {"dollars": None, "lines": [], "note": str(error)}
    return bill | {"dollars": total(lines), "lines": [asdict(line) for line in lines]}


def job_lines(attempts: list[Attempt], *, volume_gib: int, prices: Prices) -> list[CostLine]:
    """Each job's machines by their billed seconds, of which managed spot has fewer, at the
    on-demand price; the disks by the elapsed time. Source: SageMaker's DescribeTrainingJob.

    Raises PriceError for a machine without a price.
    """
    lines = []
    for attempt in attempts:
        count, instance_type = attempt.get("machines", 1), attempt["instance_type"]
        start, end = (datetime.fromisoformat(attempt[name]) for name in ("started", "ended"))
        passed = (end - start).total_seconds()
        hours = count * attempt.get("billed_seconds", passed) / 3600
        gib_months = count * volume_gib * passed / 3600 / HOURS_PER_MONTH
        spot = ", managed spot" if attempt["purchase"] == "spot" else ""
        machine = prices.sagemaker_hour(instance_type, "training")
        disk = prices.other["sagemaker_volume_gib_month"]
        lines += [
            cost_line(f"{count} × {instance_type}{spot}, billed", hours, "hour", machine),
            cost_line(f"disk, {count} × {volume_gib} GiB", gib_months, "GiB-month", disk),
        ]
    return lines


def _add_up(lines: Iterable[CostLine]) -> list[CostLine]:
    """One line for all that have the same name, as on AWS's own bill."""
    sums: dict[str, CostLine] = {}
    for line in lines:
        if known := sums.get(line.name):
            line = replace(
                line, quantity=known.quantity + line.quantity, dollars=known.dollars + line.dollars
            )
        sums[line.name] = line
    return list(sums.values())
