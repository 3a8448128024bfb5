"""Read thousands of S3 objects per second, through obstore, which is written in Rust."""

import asyncio
import hashlib
import os
import re
import sys
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import boto3
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError
from obstore.auth.boto3 import Boto3CredentialProvider
from obstore.exceptions import BaseError
from obstore.store import S3Store

from data_prep.folder import REASON_NOT_FETCHED, DataError, UnusableError

if TYPE_CHECKING:
    from obstore.store import RetryConfig

T = TypeVar("T")
R = TypeVar("R")
PUBLIC_BUCKET = "aft-vbi-pds"  # the Amazon Bin Image Dataset
PUBLIC_REGION = "us-east-1"
# Waits double, with jitter: S3 answers 503 Slow Down to a client that asks too fast.
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
MOST_FAILURES = 100  # with more, the cause is not in the single objects


class FetchError(DataError):
    """An object could not be fetched, whether or not it exists; the message is one line."""


class Failures:
    """Objects that could not be fetched, after all retries.

    A few of many are left out, so that they do not stop a long job; more end it.
    """

    def __init__(self) -> None:
        self._errors: list[FetchError] = []

    async def each(
        self,
        work: Callable[[T], Awaitable[R]],
        items: Sequence[T],
        *,
        at_once: int,
        done: Callable[[R | str], object] = lambda _: None,
    ) -> list[R | str]:
        """Return for each item what `work` returns, or the reason for leaving it out.

        Calls `done` with each result. Raises DataError after more than MOST_FAILURES failures.
        """

        async def attempt(item: T) -> R | str:
            result: R | str
            try:
                result = await work(item)
            except UnusableError as error:
                result = str(error)
            except FetchError as error:
                self._errors.append(error)
                if len(self._errors) > MOST_FAILURES:
                    raise self._too_many() from error
                result = REASON_NOT_FETCHED
            done(result)
            return result

        return await each(attempt, items, at_once=at_once)

    def check(self, asked: int) -> None:
        """Print a warning about failures; raises DataError if over 1 % of `asked` failed."""
        if len(self._errors) > asked // 100:
            raise self._too_many()
        if self._errors:
            print(f"warning: left out {self._summary()}", file=sys.stderr)

    def _too_many(self) -> DataError:
        return DataError(f"there are {self._summary()}: run the same command again")

    def _summary(self) -> str:
        number, first = len(self._errors), self._errors[0]
        return f"photos that could not be fetched ({number}), the first because of {first}"


class Bucket:
    """A bucket to read many objects from at the same time."""

    def __init__(
        self, name: str, store: S3Store, *, encrypted: Callable[[str], bool] = lambda _: False
    ) -> None:
        """`encrypted` tells for a key whether the ETag of its object is not a checksum."""
        self.name, self._store, self.encrypted = name, store, encrypted

    async def fetch(self, key: str) -> bytes | None:
        """Return an object's bytes, or None if there is no such key.

        Raises FetchError if S3 does not answer or refuses, or if the bytes do not match the
        checksum in the ETag.
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
            raise FetchError(f"s3://{self.name}/{key}: the bytes do not match the checksum")
        return content

    async def _has_other_etag(self, key: str) -> bool:
        try:
            return await asyncio.to_thread(self.encrypted, key)
        except (BotoCoreError, ClientError) as error:
            raise FetchError(f"s3://{self.name}/{key}: {_first_line(error)}") from error


def run(work: Coroutine[Any, Any, R]) -> R:
    """Return the result of `work`; if several tasks fail, raise the first error."""
    try:
        return asyncio.run(work)
    except ExceptionGroup as group:
        raise group.exceptions[0] from None


async def each(work: Callable[[T], Awaitable[R]], items: Sequence[T], *, at_once: int) -> list[R]:
    """Return what `work` returns for each item, in order; `at_once` of them run concurrently."""
    results: dict[int, R] = {}
    waiting = iter(range(len(items)))  # shared by the workers

    async def worker() -> None:
        for index in waiting:
            results[index] = await work(items[index])

    async with asyncio.TaskGroup() as workers:
        for _ in range(min(at_once, len(items))):
            workers.create_task(worker())
    return [results[index] for index in range(len(items))]


def exit_at_once(code: int) -> NoReturn:
    """Flush the output and end the process, without Python's own shutdown.

    A thread of obstore may still wait for the interpreter when all work is done. If it gets it
    during the shutdown, Rust ends the process with SIGABRT:
    github.com/PyO3/pyo3-async-runtimes/issues/40
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(BrokenPipeError):
            stream.flush()
    os._exit(code)


def public_bucket(name: str = PUBLIC_BUCKET) -> Bucket:
    """Open a bucket that anybody may read."""
    return Bucket(name, _open_store(name, PUBLIC_REGION, skip_signature=True))


def own_bucket(name: str) -> Bucket:
    """Open a bucket with the user's credentials; raises NoCredentialsError without any."""
    session = boto3.Session()
    if session.get_credentials() is None:
        raise NoCredentialsError
    region = session.region_name or PUBLIC_REGION
    store = _open_store(name, region, credential_provider=Boto3CredentialProvider(session))
    s3 = session.client("s3")

    def encrypted(key: str) -> bool:
        # With a KMS key the ETag has 32 digits as well, but is not the MD5 (S3's API reference,
        # "Object").
        found = s3.head_object(Bucket=name, Key=key).get("ServerSideEncryption", "AES256")
        return found != "AES256"

    return Bucket(name, store, encrypted=encrypted)


def _open_store(name: str, region: str, **access: Any) -> S3Store:
    """Open a bucket, at AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL if one of them is set."""
    url = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return S3Store(
        name,
        region=region,
        retry_config=RETRIES,
        client_options={"allow_http": bool(url), "timeout": timedelta(minutes=1)},
        config={"endpoint": url} if url else {},
        **access,
    )


def _first_line(error: BaseException) -> str:
    """Drop the details of Rust's error, which obstore appends to its own."""
    return " ".join(str(error).split("\n\n")[0].split())
