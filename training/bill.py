"""cost.json: what a run's machines cost, beside what was expected."""

from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import Any

from costs.estimate import CostLine, run_cost, total
from costs.prices import PriceError, Prices
from training.run_record import Attempt, Request, billed_seconds


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
    types, `dollars` is None and `note` says so: no reason to lose a model that is finished.
    """
    expected = request["estimate"]
    seconds = billed_seconds(attempts, request)
    bill: dict[str, Any] = {
        "instance_type": instance_type,
        "seconds": sum(seconds),
        "volume_gib": volume_gib,
        "prices_date": prices.date,
        "estimate": {name: expected.get(name) for name in ("seconds", "dollars")},
    }
    try:
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


def _add_up(lines: Iterable[CostLine]) -> list[CostLine]:
    """One line for what has the same name, as on AWS's own bill."""
    sums: dict[str, CostLine] = {}
    for line in lines:
        known = sums.get(line.name)
        sums[line.name] = (
            line
            if known is None
            else replace(
                line, quantity=known.quantity + line.quantity, dollars=known.dollars + line.dollars
            )
        )
    return list(sums.values())
