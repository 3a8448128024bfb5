"""The price of this machine, and the bill of the run."""

import logging

from common.choices import Purchase
from common.run_record import Attempt, Request, RunRecord
from costs.bill import run_bill
from costs.estimate import run_cost, total
from costs.prices import PriceError, load_prices

log = logging.getLogger(__name__)


def dollars_per_hour(
    instance_type: str, purchase: Purchase, volume_gib: int, request: Request
) -> float:
    """Return the price of the machine with its disk, or the estimate's if the type has none."""
    try:
        return total(run_cost(3600, instance_type, purchase, volume_gib, load_prices()))
    except PriceError:
        estimate = request["estimate"]
        return float(estimate["dollars"]) / max(float(estimate["seconds"]), 1.0) * 3600


def store_bill(
    record: RunRecord, attempts: list[Attempt], request: Request, *, last_type: str, volume_gib: int
) -> None:
    """Write cost.json; an error is logged, as it must never fail the run."""
    try:
        bill = run_bill(
            attempts,
            request,
            instance_type=last_type,
            volume_gib=volume_gib,
            prices=load_prices(),
        )
        record.write("cost.json", bill)
    except Exception:
        log.exception("the bill could not be stored")
