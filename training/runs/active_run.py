"""control/: the active run, and the lease of the machine that works on it.

S3's conditional writes decide between two writers:
docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html
"""

import json
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

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
    """control/current.json, which infra/user_data.sh reads as well."""

    run_id: str
    runtime: str  # prefix of the wheels, "runtime/<hash>/"
    launch: NotRequired[str]  # random; identifies one launch of the run
    launched: NotRequired[str]  # UTC, ISO 8601
    stop: NotRequired[bool]  # the user wants the machine to end the run after a checkpoint


class RunActiveError(RuntimeError):
    """Another run is active; the message is one line."""


class LeaseLostError(RuntimeError):
    """Another machine holds the lease."""


def current_run(s3: "S3Client", bucket: str) -> CurrentRun | None:
    """Return the active run, or None."""
    found = _read(s3, bucket, CURRENT)
    return found[0] if found else None


def activate_run(
    s3: "S3Client", bucket: str, run: CurrentRun, *, instead_of: CurrentRun | None = None
) -> None:
    """Make `run` the active run, replacing `instead_of`, which has ended without reporting it.

    Raises RunActiveError if another run is active. Of two simultaneous callers, one succeeds.
    """
    found = _read(s3, bucket, CURRENT) if instead_of else None
    if found and found[0] != instead_of:
        raise RunActiveError(f"run {found[0]['run_id']} is active")
    try:
        _write(s3, bucket, CURRENT, run, etag=found[1] if found else "")
    except ClientError as error:
        if not _condition_failed(error):
            raise
        active = current_run(s3, bucket)
        raise RunActiveError(f"run {active['run_id'] if active else '?'} is active") from error


def request_stop(s3: "S3Client", bucket: str, run_id: str) -> bool:
    """Ask the machine of the active run to end it; return False if `run_id` is not active."""
    found = _read(s3, bucket, CURRENT)
    if found is None or found[0]["run_id"] != run_id:
        return False
    try:
        _write(s3, bucket, CURRENT, {**found[0], "stop": True}, etag=found[1])
    except ClientError as error:
        if _condition_failed(error):
            return False  # the run has ended since
        raise
    return True


def stop_requested(s3: "S3Client", bucket: str) -> bool:
    """Whether the user has asked the machine to stop the active run."""
    active = current_run(s3, bucket)
    return active is not None and active.get("stop", False)


def is_active(s3: "S3Client", bucket: str, run: CurrentRun) -> bool:
    """Whether `run` is the active run, started by the same launch."""
    return same_launch(current_run(s3, bucket), run)


def deactivate_run(s3: "S3Client", bucket: str, run: CurrentRun) -> bool:
    """Remove the pointer to the active run; return False, and keep it, if that is not `run`."""
    found = _read(s3, bucket, CURRENT)
    if found is None or not same_launch(found[0], run):
        return False
    try:
        s3.delete_object(Bucket=bucket, Key=CURRENT, IfMatch=found[1])
    except ClientError as error:
        if _condition_failed(error):
            return False
        raise
    return True


def same_launch(one: CurrentRun | None, other: CurrentRun) -> bool:
    """Whether both are one run, started by the same launch."""
    return (
        one is not None
        and one["run_id"] == other["run_id"]
        and one.get("launch") == other.get("launch")
    )


class Lease:
    """The right to work on a run, held by one machine at a time.

    It expires LEASE_SECONDS after its last renewal, so a machine that disappeared blocks its
    replacement no longer than that. Conditional writes protect the run's status without it; the
    lease keeps two machines from training side by side.
    """

    def __init__(self, s3: "S3Client", bucket: str, *, run_id: str, holder: str) -> None:
        self._s3 = s3
        self._bucket = bucket
        self._run_id = run_id
        self._holder = holder
        self._etag = ""
        self._renewed = 0.0

    def acquire(self, give_up: Callable[[], bool] = lambda: False) -> bool:
        """Take the lease as soon as no other machine holds it; return False once `give_up()`."""
        while not give_up():
            if self._take():
                return True
            time.sleep(1)
        return False

    def renew(self) -> None:
        """Renew the lease if that is due; raises LeaseLostError if another machine has taken it."""
        if time.monotonic() - self._renewed < RENEW_SECONDS:
            return
        self._write(time.time() + LEASE_SECONDS)

    def release(self) -> None:
        """Let the next machine take the lease at once; raises LeaseLostError if one already has."""
        self._write(0)

    def _take(self) -> bool:
        held = _read(self._s3, self._bucket, LEASE)
        # The lease is already ours if the answer to an earlier write was lost.
        if held and held[0]["expires"] > time.time() and not self._is_ours(held[0]):
            return False
        self._etag = held[1] if held else ""
        try:
            self._write(time.time() + LEASE_SECONDS)
        except LeaseLostError:
            return False
        return True

    def _is_ours(self, lease: Mapping[str, Any]) -> bool:
        return (lease["run_id"], lease["holder"]) == (self._run_id, self._holder)

    def _write(self, expires: float) -> None:
        lease = {"run_id": self._run_id, "holder": self._holder, "expires": expires}
        try:
            self._etag = _write(self._s3, self._bucket, LEASE, lease, etag=self._etag)
            self._renewed = time.monotonic()
        except ClientError as error:
            if not _condition_failed(error):
                raise
            # S3 also refuses botocore's retry of a write that arrived without its answer.
            held = _read(self._s3, self._bucket, LEASE)
            if not held or held[1] == self._etag or not self._is_ours(held[0]):
                raise LeaseLostError(f"{self._holder} no longer holds the lease") from error
            self._etag = held[1]
            self._write(expires)


def _write(s3: "S3Client", bucket: str, key: str, content: Mapping[str, Any], *, etag: str) -> str:
    """Write JSON if the object's ETag is still `etag`, or, if that is empty, if it is absent.

    Returns the new ETag.
    """
    condition: Any = {"IfMatch": etag} if etag else {"IfNoneMatch": "*"}
    body = json.dumps(content).encode()
    return s3.put_object(Bucket=bucket, Key=key, Body=body, **condition)["ETag"]


def _read(s3: "S3Client", bucket: str, key: str) -> tuple[Any, str] | None:
    """Read an object's JSON and its ETag; return None if it is absent.

    The listing comes first: without permission to list the whole bucket, S3 answers GetObject
    with 403 instead of 404.
    """
    if key not in list_keys(s3, bucket, key):
        return None
    try:
        answer = s3.get_object(Bucket=bucket, Key=key)
    except s3.exceptions.NoSuchKey:
        return None  # deleted since the listing
    return json.loads(answer["Body"].read()), answer["ETag"]


def _condition_failed(error: ClientError) -> bool:
    return error.response["Error"]["Code"] in {
        "PreconditionFailed",
        "ConditionalRequestConflict",  # of two simultaneous conditional writes
        "NoSuchKey",  # IfMatch on a deleted object
    }
