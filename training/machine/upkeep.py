"""What a machine does beside training, and how it bears an AWS that does not answer."""

import logging
import random
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
from urllib3.exceptions import HTTPError

from training.runs.active_run import LeaseLostError
from training.settings import seconds

AWS_ERRORS = (BotoCoreError, ClientError, Boto3Error, HTTPError)  # the last is of the metadata
# A machine has its credentials from the metadata service: there are none while it is silent.
SILENCE = (
    ConnectionError,
    CredentialRetrievalError,
    HTTPClientError,
    HTTPError,
    IncompleteReadError,
    NoCredentialsError,
)
BUSY = {
    "ConditionalRequestConflict",  # raced with another write of the same object
    "RequestTimeout",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "TooManyRequestsException",
}
PAUSE_SECONDS = seconds("PAUSE", 30)  # at most, between two tries

Result = TypeVar("Result")
log = logging.getLogger(__name__)


class Every:
    """Says once per `seconds` that it is time."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._last = time.monotonic()

    def due(self) -> bool:
        if time.monotonic() - self._last < self._seconds:
            return False
        self._last = time.monotonic()
        return True


class Background:
    """One call at a time in a thread of its own: whoever waits for S3 keeps nobody waiting."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call
        self._pool = ThreadPoolExecutor(1)
        self._running: Future[None] | None = None

    def begin(self) -> None:
        """Call, unless the last call is still at work. Raises what the last one raised."""
        if self._running and not self._running.done():
            return
        self.wait()
        self._running = self._pool.submit(self._call)

    def wait(self) -> None:
        """Until the last call has ended. Raises what it raised."""
        if self._running:
            running, self._running = self._running, None
            running.result()


@contextmanager
def best_effort(otherwise: str) -> Iterator[None]:
    """For what may fail without harm: a line in the log says `otherwise`, and why."""
    try:
        yield
    except (LeaseLostError, *AWS_ERRORS) as error:
        log.warning("%s: %s", otherwise, error)


def patiently(action: Callable[[], Result], give_up: Callable[[], bool]) -> Result:
    """`action`, again while AWS does not answer or is too busy, until `give_up()`.

    With growing, random pauses: machines that failed together do not come back together.
    """
    longest = 1.0
    while True:
        try:
            return action()
        except AWS_ERRORS as error:
            if not will_pass(error) or give_up():
                raise
            log.warning("trying again: %s", error)
        time.sleep(random.uniform(0, min(longest, PAUSE_SECONDS)))
        longest *= 2


def will_pass(error: BaseException) -> bool:
    """Whether the same call may succeed later: no connection, a server's error, too many calls."""
    if isinstance(error, RetriesExceededError):
        error = vars(error)["last_exception"]  # which its type hints lack
    elif isinstance(error, Boto3Error) and error.__context__:  # of an upload, around the true one
        error = error.__context__
    if isinstance(error, ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return status >= 500 or error.response["Error"]["Code"] in BUSY
    return isinstance(error, SILENCE)
