"""Retries of AWS calls, and calls that run beside the training."""

import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from boto3.exceptions import Boto3Error, RetriesExceededError
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
)
from tenacity import RetryCallState, Retrying, retry_if_exception, wait_random_exponential
from urllib3.exceptions import HTTPError

from training.runs.active_run import LeaseLostError
from training.settings import seconds

AWS_ERRORS = (BotoCoreError, ClientError, Boto3Error, HTTPError)  # the last by ec2-metadata
# Credentials are among these errors because the metadata service supplies them.
NO_ANSWER = (
    ConnectionError,
    CredentialRetrievalError,
    HTTPClientError,
    HTTPError,
    IncompleteReadError,
    NoCredentialsError,
)
TRANSIENT_CODES = {
    "ConditionalRequestConflict",  # of two simultaneous conditional writes
    "RequestTimeout",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "TooManyRequestsException",
}
PAUSE_SECONDS = seconds("PAUSE", 30)  # the longest pause between two attempts of a call

Result = TypeVar("Result")
log = logging.getLogger(__name__)


class RateLimiter:
    """Rate limiter: `due()` is true at most once every `seconds`."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._last = time.monotonic()

    def due(self) -> bool:
        if time.monotonic() - self._last < self._seconds:
            return False
        self._last = time.monotonic()
        return True


class Background:
    """Runs a function in a thread, one call at a time, so that S3 does not delay the caller."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call
        self._pool = ThreadPoolExecutor(1)
        self._running: Future[None] | None = None

    def begin(self) -> None:
        """Start a call unless the last one is still running; raise what the last one raised."""
        if self._running and not self._running.done():
            return
        self.wait()
        self._running = self._pool.submit(self._call)

    def wait(self) -> None:
        """Wait for the last call to end; raise what it raised."""
        if self._running:
            running, self._running = self._running, None
            running.result()


@contextmanager
def best_effort(warning: str) -> Iterator[None]:
    """Log `warning` and the error instead of raising an error of AWS or LeaseLostError."""
    try:
        yield
    except (LeaseLostError, *AWS_ERRORS) as error:
        log.warning("%s: %s", warning, error)


def retry(action: Callable[[], Result], give_up: Callable[[], bool]) -> Result:
    """Call `action`, and repeat it after a transient error unless `give_up()`.

    The pauses grow exponentially, with full jitter:
    aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter
    """
    retrying = Retrying(
        retry=retry_if_exception(lambda error: is_transient(error) and not give_up()),
        wait=wait_random_exponential(max=PAUSE_SECONDS),
        before_sleep=_log_retry,
        reraise=True,
    )
    return retrying(action)


def _log_retry(state: RetryCallState) -> None:
    log.warning("trying again: %s", state.outcome and state.outcome.exception())


def is_transient(error: BaseException) -> bool:
    """Whether the call may succeed later: no connection, a server error, or throttling."""
    if isinstance(error, RetriesExceededError):
        error = vars(error)["last_exception"]  # the type hints lack it
    elif isinstance(error, Boto3Error) and error.__context__:  # an upload wraps the cause
        error = error.__context__
    if isinstance(error, ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return status >= 500 or error.response["Error"]["Code"] in TRANSIENT_CODES
    return isinstance(error, NO_ANSWER)
