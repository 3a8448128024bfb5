"""How good the estimates were: run by run, and the median.

Only for runs that succeeded, as an estimate covers all of the work.
"""

from statistics import median
from typing import Any

import boto3

from common.outputs import chosen_bucket
from common.run_record import RunRecord
from common.storage import list_keys
from common.table import money, table
from costs.actual import describe_error
from costs.runs import read


def read_actuals(bucket: str) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """What `python -m costs actual` stored, by run, and the runs for which it was not called."""
    s3 = boto3.client("s3")
    keys = list_keys(s3, bucket, "runs/")
    actuals, unknown = {}, []
    for run_id in sorted({key.split("/")[1] for key in keys if key.endswith("/status.json")}):
        record = RunRecord(s3, bucket, run_id)
        if read(record, "status.json")["state"] != "succeeded":
            continue
        cost = read(record, "cost.json") if record.key("cost.json") in keys else {}
        if "actual" in cost:
            actuals[run_id] = cost["actual"]
        else:
            unknown.append(run_id)
    return actuals, unknown


def print_accuracy(bucket: str | None) -> None:
    """Print what `python -m costs accuracy` shows; ValueError before the first actual cost."""
    actuals, unknown = read_actuals(chosen_bucket(bucket))
    remark = f"not billed yet, run `python -m costs actual RUN`: {', '.join(unknown)}"
    if not actuals:
        raise ValueError(remark if unknown else "no run has succeeded yet")
    header = ["run", "minutes, estimate", "minutes, actual", "$, estimate", "$, actual", "error"]
    rows = [
        [
            run_id,
            f"{actual['estimate']['seconds'] / 60:.1f}",
            f"{actual['seconds'] / 60:.1f}",
            money(actual["estimate"]["dollars"]),
            money(actual["dollars"]),
            describe_error(actual["error_percent"]),
        ]
        for run_id, actual in actuals.items()
    ]
    print(table(header, rows))
    errors = [
        abs(actual["error_percent"])
        for actual in actuals.values()
        if actual["error_percent"] is not None
    ]
    if errors:
        runs = "1 run" if len(errors) == 1 else f"{len(errors)} runs"
        print(f"\nmedian error of {runs}: {median(errors):.0f} %, too high or too low")
    if unknown:
        print(remark)
