"""Objects of S3, thousands a second: through obstore, which is Rust inside."""

import asyncio
import hashlib
import os
import re
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import boto3
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError
from obstore.auth.boto3 import Boto3CredentialProvider
from obstore.exceptions import BaseError
from obstore.store import S3Store

from data_prep.folder import DataError

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig, S3Config

T = TypeVar("T")
R = TypeVar("R")
PUBLIC_BUCKET = "aft-vbi-pds"  # the Amazon Bin Image Dataset
PUBLIC_REGION = "us-east-1"
# Waits double, with jitter: with 503 Slow Down, S3 asks a client that is too fast to wait.
RETRIES: "RetryConfig" = {
    "max_retries": 10,
    "backoff": {
        "base": 2,
        "init_backoff": timedelta(milliseconds=100),
        "max_backoff": timedelta(seconds=15),
    },
    "retry_timeout": timedelta(minutes=3),
}
MD5 = re.compile(r'"([0-9a-f]{32})"')  # ETag of an object that was uploaded in one part


class FetchError(DataError):
    """An object could not be fetched, whether or not it is there; the message is one line."""


MOST_FAILURES = 100  # with more, it is not the objects that are to blame


class Failures:
    """Objects that could not be fetched, after all retries. A few of many are left out, so that
    none ends a long job; with more, the work ends."""

    def __init__(self) -> None:
        self._errors: list[FetchError] = []

    def add(self, error: FetchError) -> None:
        """Raises DataError once there are more than MOST_FAILURES."""
        self._errors.append(error)
        if len(self._errors) > MOST_FAILURES:
            raise self._ended()

    def check(self, asked: int) -> None:
        """Say what there is, of so many; raises DataError when it is more than one in a hundred."""
        if len(self._errors) > asked // 100:
            raise self._ended()
        if self._errors:
            print(f"warning: left out, as it {self._told()}", file=sys.stderr)

    def _ended(self) -> DataError:
        return DataError(f"{self._told()}: run the same command again")

    def _told(self) -> str:
        return (
            f"could not be fetched: {len(self._errors)} photos, the first because of "
            f"{self._errors[0]}"
        )


class Bucket:
    """A bucket to read from, many objects at a time."""

    def __init__(
        self, name: str, store: S3Store, *, encrypted: Callable[[str], bool] = lambda _: False
    ) -> None:
        """`encrypted`: whether the object of a key has an ETag that is no checksum."""
        self.name, self._store, self.encrypted = name, store, encrypted

    async def fetch(self, key: str) -> bytes | None:
        """An object's bytes, compared with the checksum in its ETag; None without such a key.

        Raises FetchError when S3 does not answer, refuses, or the bytes are not the object's.
        """
        try:
            answer = await self._store.get_async(key)
            content = bytes(await answer.bytes_async())
        except FileNotFoundError as error:
            if "NoSuchBucket" in str(error):
                raise FetchError(f"s3://{self.name}/{key}: NoSuchBucket") from error
            return None
        except BaseError as error:
            raise FetchError(f"s3://{self.name}/{key}: {_first_line(error)}") from error
        checksum = MD5.fullmatch(answer.meta["e_tag"] or "")
        if (
            checksum
            and hashlib.md5(content, usedforsecurity=False).hexdigest() != checksum[1]
            and not await self._has_other_etag(key)
        ):
            raise FetchError(f"s3://{self.name}/{key}: the bytes do not have its checksum")
        return content

    async def _has_other_etag(self, key: str) -> bool:
        try:
            return await asyncio.to_thread(self.encrypted, key)
        except (BotoCoreError, ClientError) as error:
            raise FetchError(f"s3://{self.name}/{key}: {_first_line(error)}") from error


def run(work: Coroutine[Any, Any, R]) -> R:
    """The result of `work`; of several errors side by side, the first is raised."""
    try:
        return asyncio.run(work)
    except ExceptionGroup as group:
        raise group.exceptions[0] from None


async def each(work: Callable[[T], Awaitable[R]], items: Sequence[T], *, at_once: int) -> list[R]:
    """What `work` returns for each of the items, in their order, so many of them at once."""
    found: dict[int, R] = {}

    async def worker(places: Iterator[int]) -> None:
        for place in places:
            found[place] = await work(items[place])

    places = iter(range(len(items)))
    async with asyncio.TaskGroup() as workers:
        for _ in range(min(at_once, len(items))):
            workers.create_task(worker(places))
    return [found[place] for place in range(len(items))]


def exit_at_once(code: int) -> NoReturn:
    """End the process with all that it printed, without Python's own shutdown.

    A thread of obstore may still wait for the interpreter when all work is done. If it gets it
    during the shutdown, Rust ends the process with SIGABRT:
    github.com/PyO3/pyo3-async-runtimes/issues/40
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(BrokenPipeError):
            stream.flush()
    os._exit(code)


def public_bucket(name: str = PUBLIC_BUCKET) -> Bucket:
    """A bucket that anybody may read; AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL points elsewhere."""
    store = S3Store(
        name,
        region=PUBLIC_REGION,
        skip_signature=True,
        retry_config=RETRIES,
        client_options=_client_options(),
        config=_config(),
    )
    return Bucket(name, store)


def own_bucket(name: str) -> Bucket:
    """A bucket that is read with your own credentials. Raises NoCredentialsError without any."""
    session = boto3.Session()
    if session.get_credentials() is None:
        raise NoCredentialsError
    store = S3Store(
        name,
        region=session.region_name or PUBLIC_REGION,
        credential_provider=Boto3CredentialProvider(session),
        retry_config=RETRIES,
        client_options=_client_options(),
        config=_config(),
    )
    s3 = session.client("s3")

    def encrypted(key: str) -> bool:
        # With a key of KMS the ETag is of 32 digits, too, but not the MD5 (S3's API reference,
        # "Object").
        found = s3.head_object(Bucket=name, Key=key).get("ServerSideEncryption", "AES256")
        return found != "AES256"

    return Bucket(name, store, encrypted=encrypted)


def _config() -> "S3Config":
    url = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return {"endpoint": url} if url else {}


def _client_options() -> "ClientConfig":
    return {"allow_http": "endpoint" in _config(), "timeout": timedelta(minutes=1)}


def _first_line(error: BaseException) -> str:
    """obstore's errors go on with the whole of Rust's."""
    return " ".join(str(error).split("\n\n")[0].split())
