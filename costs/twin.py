"""The same training at the other place, EC2 or SageMaker, by the two runs' own records."""

from dataclasses import dataclass
from typing import Any, cast

from botocore.exceptions import ClientError

from costs.runs import read
from training.run_record import Request, RunRecord, billed_seconds
from training.transfer import list_keys

# What makes two runs the same training.
WORK = ("dataset", "arch", "mode", "members", "epochs", "train_arguments")


@dataclass(frozen=True)
class Measured:
    """What a run took and cost by its own record; hours are those of all its machines together."""

    run_id: str
    where: str  # as costs.compare names its rows
    instance_type: str
    hours: float
    dollars: float
    judged: str  # how good its model is


def measure(record: RunRecord) -> Measured | None:
    """A run as it was; None without dollars. Raises ValueError for a damaged record."""
    request, status, cost = (read(record, f"{name}.json") for name in ("request", "status", "cost"))
    try:
        attempts = status["attempts"]
        dollars = cost["actual"]["dollars"] if "actual" in cost else cost["dollars"]
        if dollars is None:
            return None
        seconds = sum(billed_seconds(attempts, cast(Request, request)))
        return Measured(
            run_id=record.run_id,
            where=_where(request, attempts),
            instance_type=", ".join(dict.fromkeys(_machines(each) for each in attempts)),
            hours=seconds / 3600,
            dollars=float(dollars),
            judged=_judged(record),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{record.uri('')} is damaged: {error!r}") from error


def find_twin(record: RunRecord) -> RunRecord | None:
    """The newest run that succeeded with the same work at the other place."""
    request = read(record, "request.json")
    keys = list_keys(record.s3, record.bucket, "runs/")
    ids = {key.split("/")[1] for key in keys if key.endswith("/cost.json")}
    for run_id in sorted(ids - {record.run_id}, reverse=True):
        other = RunRecord(record.s3, record.bucket, run_id)
        theirs = read(other, "request.json")
        if (
            theirs.get("service") != request.get("service")
            and all(theirs.get(name) == request.get(name) for name in WORK)
            and read(other, "status.json")["state"] == "succeeded"
        ):
            return other
    return None


def _where(request: dict[str, Any], attempts: list[dict[str, Any]]) -> str:
    spot = attempts[-1]["purchase"] == "spot"
    if request.get("service") == "sagemaker":
        return "SageMaker managed spot" if spot else "SageMaker training"
    return "EC2 spot" if spot else "EC2 on demand"


def _machines(attempt: dict[str, Any]) -> str:
    number = attempt.get("machines", 1)
    return f"{number} × {attempt['instance_type']}" if number > 1 else attempt["instance_type"]


def _judged(record: RunRecord) -> str:
    try:
        return f"{record.judged()['accuracy']['value']:.1%} exact"
    except ClientError:
        return "no metrics"
