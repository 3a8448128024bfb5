"""What is known about a run: the objects under runs/<id>/, read and written here alone."""

import json
import secrets
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NotRequired, TypedDict

from botocore.exceptions import ClientError

if TYPE_CHECKING:  # the type hints are not on a training machine
    from mypy_boto3_s3 import S3Client

Mode = Literal["head", "finetune"]  # what is trained
Purchase = Literal["spot", "on_demand"]  # how a machine is bought
State = Literal["requested", "running", "interrupted", "succeeded", "stopped", "failed"]
ENDED: frozenset[State] = frozenset({"succeeded", "stopped", "failed"})
# interrupted: by EC2, with its notice; shut down: by anybody else; lost: without a word.
Outcome = Literal["interrupted", "shut down", "lost", "failed", "stopped", "succeeded"]
STATUS = "status.json"
CHANGED = {"PreconditionFailed", "NoSuchKey"}  # what S3 says of a condition that does not hold
WRITER = secrets.token_hex(8)  # this process: no two write the same status
MODEL = "model.tar.gz"  # the packed model, beside the record
OUTPUTS = ("metrics.jsonl", "metrics.json", "loss.png", "report.html", "weights.pth")
TRACED = ("events", "profile.txt", "trace.json")  # for TensorBoard; the others with --profile
TRACES = "traces.tar.gz"  # those of TRACED that there are
RESULTS = (*OUTPUTS, "cost.json", TRACES, MODEL)  # what a run that succeeded leaves


class Request(TypedDict):
    """request.json: what was asked for."""

    run_id: str
    dataset: str
    arch: str
    train_arguments: list[str]  # flags of training.train
    deadline: str  # ISO 8601, UTC; no machine works on the run after it
    estimate: dict[str, Any]
    mode: Mode  # of training.train
    ensemble_size: int  # as above
    epochs: int  # with `chunks`, what progress is measured against
    chunks: int  # of features, both sides of the data set; 0 when every layer is trained
    runtime: str  # prefix of the wheels, "runtime/<hash>/"
    earlier_attempts: NotRequired[int]  # before `launch resume`; their failures no longer count
    fallback_minutes: NotRequired[float]  # without a machine, until one is started on demand
    service: NotRequired[Literal["sagemaker"]]  # that runs it; without it, EC2


class Attempt(TypedDict):
    """One machine's share of a run, or one training job's on SageMaker."""

    instance_id: str  # or the training job's name
    instance_type: str
    zone: str  # or the region
    purchase: Purchase
    started: str
    ended: NotRequired[str]
    outcome: NotRequired[Outcome]
    machines: NotRequired[int]  # of a training job; without it, 1
    volume_gib: NotRequired[int]  # of the disk of each
    billed_seconds: NotRequired[float]  # of each of them, by SageMaker


class Status(TypedDict):
    """status.json: where the run stands. `message` is for a person."""

    state: State
    message: str
    updated: str
    attempts: list[Attempt]
    writer: NotRequired[str]  # random: tells two processes that write it apart


class StatusChangedError(RuntimeError):
    """Another machine or command wrote the status since it was read; the message is one line."""


class RunRecord:
    """One run's objects in the bucket.

    Who has read the status through this object may write it only as long as nobody else did: a
    machine that was frozen in between cannot overwrite the word of its successor.
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
        """The JSON under `name`; botocore's ClientError when there is none."""
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
        """Metrics of a finished run on test photos; of one that left them alone, or trained on
        them, on validation photos."""
        metrics = self.read("metrics.json")
        found: dict[str, Any] = metrics.get("test") or metrics["validation"]
        return found

    def set_status(self, state: State, message: str, attempts: list[Attempt]) -> None:
        """Raises StatusChangedError when somebody else wrote it since `status` read it here."""
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
            if error.response["Error"]["Code"] not in CHANGED:
                raise
            # Of a write that arrived, but whose answer did not, the repetition is refused.
            before = self._status_etag
            if self.status().get("writer") != WRITER or self._status_etag == before:
                raise StatusChangedError(
                    f"somebody else has changed the status of run {self.run_id} meanwhile"
                ) from error
            return self.set_status(state, message, attempts)
        self._status_etag = answer["ETag"]
        return None


def utc_now() -> str:
    """The time as ISO 8601, whole seconds, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def billed_seconds(attempts: list[Attempt], request: Request) -> list[float]:
    """Seconds that each machine is paid for, of a training job its machines together.

    One that never reported its end counts until the next one's start, and the last until now or,
    at most, the deadline. Never below 0, though the clocks that wrote the times may differ.
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
    """Write down the end of a run whose machine did not; nothing if it did."""
    while (status := record.status())["state"] not in ENDED:
        attempts = closed(status["attempts"], record.request(), outcome)
        with suppress(StatusChangedError):  # by the machine, with its last words
            return record.set_status(state, message, attempts)
    return None


def closed(attempts: list[Attempt], request: Request, outcome: Outcome) -> list[Attempt]:
    """The same, where the last one never reported its end: with one, as `billed_seconds` has it."""
    if not attempts or "ended" in attempts[-1]:
        return attempts
    *others, last = attempts
    end = Attempt(**last, ended=min(utc_now(), request["deadline"]), outcome=outcome)
    return [*others, end]
