"""The run on the other service, EC2 or SageMaker, that did the same work."""

from collections.abc import Mapping
from typing import Any

from common.run_record import RunRecord
from common.storage import list_keys
from costs.runs import read

# What makes two runs the same training.
WORK = ("dataset", "arch", "mode", "ensemble_size", "epochs", "train_arguments")


def find_twin(record: RunRecord, named: str | None = None) -> RunRecord | None:
    """The run on the other service: the one `named`, or the newest success with the same work.

    Raises ValueError when the one named was on the same service.
    """
    request = read(record, "request.json")
    if named:
        other = RunRecord(record.s3, record.bucket, named)
        if read(other, "request.json").get("service") == request.get("service"):
            raise ValueError(f"run {named} was on the same service as run {record.run_id}")
        return other
    keys = list_keys(record.s3, record.bucket, "runs/")
    ids = {key.split("/")[1] for key in keys if key.endswith("/cost.json")}
    for run_id in sorted(ids - {record.run_id}, reverse=True):
        other = RunRecord(record.s3, record.bucket, run_id)
        theirs = read(other, "request.json")
        if (
            theirs.get("service") != request.get("service")
            and not differences(theirs, request)
            and read(other, "status.json")["state"] == "succeeded"
        ):
            return other
    return None


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Differences between two requests, such as `epochs 20 and 40`."""
    return [
        f"{name} {_words(one.get(name))} and {_words(other.get(name))}"
        for name in WORK
        if one.get(name) != other.get(name)
    ]


def _words(value: Any) -> str:
    return (" ".join(value) or "none") if isinstance(value, list) else str(value)
