"""control/: which run is active, and which machine may write it. S3's conditional writes decide."""

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NotRequired, TypedDict

from botocore.exceptions import ClientError

from common.storage import list_keys
from training.settings import seconds

if TYPE_CHECKING:  # the type hints are not on a training machine
    from mypy_boto3_s3 import S3Client

CURRENT = "control/current.json"
LEASE = "control/lease.json"
LEASE_SECONDS = 60
RENEW_SECONDS = seconds("RENEW", 20)


class CurrentRun(TypedDict):
    """control/current.json; user_data.sh reads it as well."""

    run_id: str
    runtime: str  # prefix of the wheels, "runtime/<hash>/"
    launch: NotRequired[str]  # random: tells two launches of one run apart
    launched: NotRequired[str]  # UTC, ISO 8601
    stop: NotRequired[bool]  # the user asks the machine for a snapshot and the end of the run


class RunActiveError(RuntimeError):
    """Another run is active; the message is one line."""


class LeaseLostError(RuntimeError):
    """Another machine holds the lease."""


def current_run(s3: "S3Client", bucket: str) -> CurrentRun | None:
    """The active run, if any."""
    found = _read(s3, bucket, CURRENT)
    if found is None:
        return None
    current: CurrentRun = json.loads(found[0])
    return current


def start_run(
    s3: "S3Client", bucket: str, run: CurrentRun, *, instead_of: CurrentRun | None = None
) -> None:
    """Make `run` the active one, instead of one that has ended without saying so, if any.

    Raises RunActiveError when another run is active; of two callers, one gets it.
    """
    found = _read(s3, bucket, CURRENT) if instead_of else None
    if found and json.loads(found[0]) != instead_of:
        raise RunActiveError(f"run {json.loads(found[0])['run_id']} is active")
    try:
        _put_current(s3, bucket, run, etag=found[1] if found else None)
    except ClientError as error:
        if not _condition_failed(error):
            raise
        active = current_run(s3, bucket)
        raise RunActiveError(f"run {active['run_id'] if active else '?'} is active") from error


def ask_to_stop(s3: "S3Client", bucket: str, run_id: str) -> bool:
    """Ask the machine of the active run to end it; False when `run_id` is not the active one."""
    found = _read(s3, bucket, CURRENT)
    if found is None or json.loads(found[0])["run_id"] != run_id:
        return False
    run: CurrentRun = json.loads(found[0])
    run["stop"] = True
    try:
        _put_current(s3, bucket, run, etag=found[1])
    except ClientError as error:
        if _condition_failed(error):
            return False  # it ended in the meantime
        raise
    return True


def asked_to_stop(s3: "S3Client", bucket: str) -> bool:
    """Whether `ask_to_stop` was called for the active run; for the machine that works on it."""
    active = current_run(s3, bucket)
    return active is not None and active.get("stop", False)


def is_active(s3: "S3Client", bucket: str, run: CurrentRun) -> bool:
    """Whether `run` is the active one, and by the same launch."""
    return same_launch(current_run(s3, bucket), run)


def give_up_run(s3: "S3Client", bucket: str, run: CurrentRun) -> bool:
    """No run is active any more, if `run` was; False, with nothing changed, if another is."""
    found = _read(s3, bucket, CURRENT)
    if found is None or not same_launch(json.loads(found[0]), run):
        return False
    try:
        s3.delete_object(Bucket=bucket, Key=CURRENT, IfMatch=found[1])
    except ClientError as error:
        if _condition_failed(error):
            return False
        raise
    return True


def same_launch(one: CurrentRun | None, other: CurrentRun) -> bool:
    """Whether both are the same run, started by the same launch."""
    return (
        one is not None
        and one["run_id"] == other["run_id"]
        and one.get("launch") == other.get("launch")
    )


def _put_current(s3: "S3Client", bucket: str, run: CurrentRun, *, etag: str | None) -> None:
    """Write the pointer if it is as it was at `etag`, or, without one, if there is none."""
    body = json.dumps(run).encode()
    if etag:
        s3.put_object(Bucket=bucket, Key=CURRENT, Body=body, IfMatch=etag)
    else:
        s3.put_object(Bucket=bucket, Key=CURRENT, Body=body, IfNoneMatch="*")


class Lease:
    """The right to work on one run, held by one machine at a time.

    It lasts LEASE_SECONDS from each renewal, so that a machine that vanished blocks its
    replacement no longer than that. The record guards itself, by the condition that its status
    is written with; without a lease two machines would train side by side until one writes it.
    """

    def __init__(self, s3: "S3Client", bucket: str, *, run_id: str, holder: str) -> None:
        self._s3 = s3
        self._bucket = bucket
        self._run_id = run_id
        self._holder = holder
        self._etag = ""
        self._renewed = 0.0

    def acquire(self, give_up: Callable[[], bool] = lambda: False) -> bool:
        """Take the lease, waiting for as long as another machine renews it; False, without it,
        once `give_up()`."""
        while not give_up():
            if self._take():
                return True
            time.sleep(1)
        return False

    def renew(self) -> None:
        """Extend the lease if it is due. Raises LeaseLostError when another machine took it."""
        if time.monotonic() - self._renewed < RENEW_SECONDS:
            return
        self._write(time.time() + LEASE_SECONDS)

    def release(self) -> None:
        """Let the next machine take it at once. Raises LeaseLostError when one already did."""
        self._write(0)

    def _take(self) -> bool:
        held = _read(self._s3, self._bucket, LEASE)
        # Our own is there when the answer to the first try was lost.
        if held and json.loads(held[0])["expires"] > time.time() and not self._is_ours(held[0]):
            return False
        self._etag = held[1] if held else ""
        try:
            self._write(time.time() + LEASE_SECONDS)
        except LeaseLostError:
            return False
        return True

    def _is_ours(self, body: bytes) -> bool:
        content = json.loads(body)
        return (content["run_id"], content["holder"]) == (self._run_id, self._holder)

    def _write(self, expires: float) -> None:
        content = {"run_id": self._run_id, "holder": self._holder, "expires": expires}
        body = json.dumps(content).encode()
        try:
            if self._etag:
                answer = self._s3.put_object(
                    Bucket=self._bucket, Key=LEASE, Body=body, IfMatch=self._etag
                )
            else:
                answer = self._s3.put_object(
                    Bucket=self._bucket, Key=LEASE, Body=body, IfNoneMatch="*"
                )
        except ClientError as error:
            if not _condition_failed(error):
                raise
            # Of a write that arrived, but whose answer did not, the repetition is refused.
            held = _read(self._s3, self._bucket, LEASE)
            if not held or held[1] == self._etag or not self._is_ours(held[0]):
                raise LeaseLostError(f"{self._holder} no longer holds the lease") from error
            self._etag = held[1]
            self._write(expires)
        else:
            self._etag = answer["ETag"]
            self._renewed = time.monotonic()


def _read(s3: "S3Client", bucket: str, key: str) -> tuple[bytes, str] | None:
    """Content and ETag of an object, or None.

    It is looked for in a listing first: S3 answers 403 instead of 404 to a role that may list
    some prefixes only.
    """
    if key not in list_keys(s3, bucket, key):
        return None
    try:
        answer = s3.get_object(Bucket=bucket, Key=key)
    except s3.exceptions.NoSuchKey:
        return None  # gone since the listing
    return answer["Body"].read(), answer["ETag"]


def _condition_failed(error: ClientError) -> bool:
    return error.response["Error"]["Code"] in {
        "PreconditionFailed",
        "ConditionalRequestConflict",  # raced with another conditional write
        "NoSuchKey",  # IfMatch, and the object is gone
    }
