"""The record of a run: the objects under runs/<id>/, as they are read and written."""

import json
import secrets
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NotRequired, TypedDict

from botocore.exceptions import ClientError

from common.choices import Arch, Mode, Purchase

if TYPE_CHECKING:  # the type hints are not on a training machine
    from mypy_boto3_s3 import S3Client

State = Literal["requested", "running", "interrupted", "succeeded", "stopped", "failed"]
ENDED: frozenset[State] = frozenset({"succeeded", "stopped", "failed"})
# interrupted: by EC2, with a notice; shut down: by anyone else; lost: it reported no end.
Outcome = Literal["interrupted", "shut down", "lost", "failed", "stopped", "succeeded"]
# Raised when a machine runs or reads a run in another way: older ones cannot be resumed.
VERSION = 2
STATUS = "status.json"
CONDITION_FAILED = {"PreconditionFailed", "NoSuchKey"}  # error codes of S3
WRITER = secrets.token_hex(8)  # identifies this process in the statuses that it writes
MODEL = "model.tar.gz"
OUTPUTS = ("metrics.jsonl", "metrics.json", "loss.png", "report.html", "weights.pth")
TRACE_FILES = ("events", "profile.txt", "trace.json")  # for TensorBoard; two only with --profile
TRACES_ARCHIVE = "traces.tar.gz"  # of those TRACE_FILES that exist
RESULTS = (*OUTPUTS, "cost.json", TRACES_ARCHIVE, MODEL)  # of a run that succeeded


class Work(TypedDict):
    """What a run trains, and on which data set; runs with the same work can be compared."""

    dataset: str
    arch: Arch
    train_arguments: list[str]  # flags of training.train
    mode: Mode
    ensemble_size: int
    epochs: int


class Request(Work):
    """request.json: what the user requested."""

    version: int  # VERSION of the code that started it
    run_id: str
    deadline: str  # ISO 8601, UTC; no machine works on the run after it
    estimate: dict[str, Any]
    chunks: int  # of features, both sides of the data set; 0 if every layer is trained
    runtime: str  # prefix of the wheels, "runtime/<hash>/"
    earlier_attempts: NotRequired[int]  # before `launch resume`; their failures do not count
    fallback_minutes: NotRequired[float]  # without a machine, until an on-demand one is started
    service: NotRequired[Literal["sagemaker"]]  # by default, EC2


class Attempt(TypedDict):
    """One machine's work on a run, or one training job's on SageMaker."""

    instance_id: str  # or the training job's name
    instance_type: str
    zone: str  # or the region
    purchase: Purchase
    started: str
    ended: NotRequired[str]
    outcome: NotRequired[Outcome]
    machines: NotRequired[int]  # of a training job; by default 1
    volume_gib: NotRequired[int]  # disk of each machine of the job
    billed_seconds: NotRequired[float]  # by SageMaker, for each machine of the job


class Status(TypedDict):
    """status.json: the state of the run; `message` is for the user."""

    state: State
    message: str
    updated: str
    attempts: list[Attempt]
    writer: NotRequired[str]  # WRITER of the process that wrote it


class StatusChangedError(RuntimeError):
    """Another process has changed the status since it was read; the message is one line."""


class RunRecord:
    """One run's objects in the bucket.

    An object that has read the status can write it only while no one else has changed it, so a
    machine that was frozen cannot overwrite the status of its successor.
    """

    def __init__(self, s3: "S3Client", bucket: str, run_id: str) -> None:
        self.s3 = s3
        self.bucket = bucket
        self.run_id = run_id
        self._status_etag = ""  # of the status as this object last read or wrote it

    def key(self, name: str) -> str:
        return f"runs/{self.run_id}/{name}"

    def uri(self, name: str) -> str:
        return f"s3://{self.bucket}/{self.key(name)}"

    def write(self, name: str, value: Any) -> None:
        """Store `value` as JSON under `name`."""
        body = json.dumps(value, indent=1).encode()
        self.s3.put_object(
            Bucket=self.bucket, Key=self.key(name), Body=body, ContentType="application/json"
        )

    def read(self, name: str) -> Any:
        """Read the JSON under `name`; raises botocore's ClientError if there is none."""
        answer = self.s3.get_object(Bucket=self.bucket, Key=self.key(name))
        return json.loads(answer["Body"].read())

    def upload(self, file: Path, name: str | None = None) -> None:
        self.s3.upload_file(str(file), self.bucket, self.key(name or file.name))

    def download(self, name: str, file: Path) -> None:
        self.s3.download_file(self.bucket, self.key(name), str(file))

    def request(self) -> Request:
        request: Request = self.read("request.json")
        return request

    def status(self) -> Status:
        answer = self.s3.get_object(Bucket=self.bucket, Key=self.key(STATUS))
        status: Status = json.loads(answer["Body"].read())
        self._status_etag = answer["ETag"]
        return status

    def judged(self) -> dict[str, Any]:
        """Return a finished run's metrics on the test photos.

        They are on the validation photos if the test was skipped or the test photos trained on.
        """
        metrics = self.read("metrics.json")
        judged: dict[str, Any] = metrics.get("test") or metrics["validation"]
        return judged

    def set_status(self, state: State, message: str, attempts: list[Attempt]) -> None:
        """Write status.json.

        Raises StatusChangedError if another process has changed it since this object read it.
        """
        status = Status(state=state, message=message, updated=utc_now(), attempts=attempts)
        condition: Any = {"IfMatch": self._status_etag} if self._status_etag else {}
        try:
            answer = self.s3.put_object(
                Bucket=self.bucket,
                Key=self.key(STATUS),
                Body=json.dumps(status | {"writer": WRITER}, indent=1).encode(),
                ContentType="application/json",
                **condition,
            )
        except ClientError as error:
            if error.response["Error"]["Code"] not in CONDITION_FAILED:
                raise
            # S3 also refuses botocore's retry of a write that arrived without its answer.
            before = self._status_etag
            if self.status().get("writer") != WRITER or self._status_etag == before:
                raise StatusChangedError(
                    f"another process has changed the status of run {self.run_id}"
                ) from error
            return self.set_status(state, message, attempts)
        self._status_etag = answer["ETag"]
        return None


def utc_now() -> str:
    """Return the current time as ISO 8601 in UTC, in whole seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def billed_seconds(attempts: list[Attempt], request: Request) -> list[float]:
    """Return the seconds for which each attempt is paid, summed over a training job's machines.

    An attempt that reported no end counts until the next one's start, the last one until now, but
    not beyond the deadline. Clocks of machines may differ, so negative durations count as 0.
    """
    last_end = min(datetime.now(UTC), datetime.fromisoformat(request["deadline"]))
    starts = [datetime.fromisoformat(attempt["started"]) for attempt in attempts]
    ends = [
        datetime.fromisoformat(attempt["ended"]) if "ended" in attempt else following
        for attempt, following in zip(attempts, [*starts, last_end][1:], strict=True)
    ]
    return [
        attempt.get("machines", 1)
        * attempt.get("billed_seconds", max((end - start).total_seconds(), 0.0))
        for attempt, start, end in zip(attempts, starts, ends, strict=True)
    ]


def close_record(record: RunRecord, state: State, message: str, outcome: Outcome) -> None:
    """Record the end of a run unless its machine has recorded one."""
    while (status := record.status())["state"] not in ENDED:
        attempts = close_last_attempt(status["attempts"], record.request(), outcome)
        with suppress(StatusChangedError):  # by the machine, which may have ended the run
            record.set_status(state, message, attempts)
            return


def close_last_attempt(
    attempts: list[Attempt], request: Request, outcome: Outcome
) -> list[Attempt]:
    """Return `attempts`, the last one with an end and `outcome` if it reported none.

    The end is now, but not after the deadline.
    """
    if not attempts or "ended" in attempts[-1]:
        return attempts
    *others, last = attempts
    end = Attempt(**last, ended=min(utc_now(), request["deadline"]), outcome=outcome)
    return [*others, end]
