"""control/: which run is active, and which machine may write it. S3's conditional writes decide."""

import json
import time
from typing import TYPE_CHECKING, TypedDict

from botocore.exceptions import ClientError

if TYPE_CHECKING:  # the type hints are not on a training machine
    from mypy_boto3_s3 import S3Client

CURRENT = "control/current.json"
LEASE = "control/lease.json"
LEASE_SECONDS = 60
RENEW_SECONDS = 20


class CurrentRun(TypedDict):
    """control/current.json; user_data.sh reads it as well."""

    run_id: str
    runtime: str  # prefix of the wheels, "runtime/<hash>/"


class RunActiveError(RuntimeError):
    """Another run is active; the message is one line."""


class LeaseLostError(RuntimeError):
    """Another machine holds the lease."""


def current_run(s3: "S3Client", bucket: str) -> CurrentRun | None:
    """The active run, if any."""
    try:
        body = s3.get_object(Bucket=bucket, Key=CURRENT)["Body"].read()
    except ClientError as error:
        if error.response["Error"]["Code"] == "NoSuchKey":
            return None
        raise
    current: CurrentRun = json.loads(body)
    return current


def start_run(s3: "S3Client", bucket: str, run: CurrentRun) -> None:
    """Make `run` the active one. Raises RunActiveError when there is one already."""
    body = json.dumps(run).encode()
    try:
        s3.put_object(Bucket=bucket, Key=CURRENT, Body=body, IfNoneMatch="*")
    except ClientError as error:
        if not _condition_failed(error):
            raise
        active = current_run(s3, bucket)
        raise RunActiveError(f"run {active['run_id'] if active else '?'} is active") from error


def end_run(s3: "S3Client", bucket: str) -> None:
    """No run is active any more."""
    s3.delete_object(Bucket=bucket, Key=CURRENT)


class Lease:
    """The right to write one run, held by one machine at a time.

    It lasts LEASE_SECONDS from each renewal, so that a machine that vanished blocks its
    replacement no longer than that.
    """

    def __init__(self, s3: "S3Client", bucket: str, *, run_id: str, holder: str) -> None:
        self._s3 = s3
        self._bucket = bucket
        self._run_id = run_id
        self._holder = holder
        self._etag = ""
        self._renewed = 0.0

    def acquire(self) -> None:
        """Take the lease, waiting for as long as another machine renews it."""
        while not self._take():
            time.sleep(1)

    def renew(self) -> None:
        """Extend the lease if it is due. Raises LeaseLostError when another machine took it."""
        if time.monotonic() - self._renewed < RENEW_SECONDS:
            return
        self._write(time.time() + LEASE_SECONDS)

    def release(self) -> None:
        """Let the next machine take it at once. Raises LeaseLostError when one already did."""
        self._write(0)

    def _take(self) -> bool:
        try:
            held = self._s3.get_object(Bucket=self._bucket, Key=LEASE)
        except ClientError as error:
            if error.response["Error"]["Code"] != "NoSuchKey":
                raise
            self._etag = ""
        else:
            if json.loads(held["Body"].read())["expires"] > time.time():
                return False
            self._etag = held["ETag"]
        try:
            self._write(time.time() + LEASE_SECONDS)
        except LeaseLostError:
            return False
        return True

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
            if _condition_failed(error):
                raise LeaseLostError(f"{self._holder} no longer holds the lease") from error
            raise
        self._etag = answer["ETag"]
        self._renewed = time.monotonic()


def _condition_failed(error: ClientError) -> bool:
    # 409: a conditional write that raced with another one.
    return error.response["Error"]["Code"] in {"PreconditionFailed", "ConditionalRequestConflict"}
