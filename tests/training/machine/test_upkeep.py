"""Retries while AWS does not answer, and calls in the background."""

import random
import threading
import time
from typing import Any

import pytest
from boto3.exceptions import RetriesExceededError, S3UploadFailedError
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    EndpointConnectionError,
    IncompleteReadError,
    NoCredentialsError,
    NoRegionError,
    ReadTimeoutError,
)
from urllib3.exceptions import HTTPError

from training.machine.upkeep import Background, is_transient, retry

UNREACHABLE = EndpointConnectionError(endpoint_url="https://s3")


def refusal(code: str, status: int) -> ClientError:
    reply: Any = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(reply, "PutObject")


@pytest.mark.parametrize(
    "error",
    [
        UNREACHABLE,
        ReadTimeoutError(endpoint_url="https://s3"),
        NoCredentialsError(),
        CredentialRetrievalError(provider="iam-role", error_msg="empty"),
        HTTPError("HTTP 503: http://169.254.169.254/latest/meta-data/instance-id"),
        refusal("SlowDown", 503),
        refusal("InternalError", 500),
        refusal("RequestTimeout", 400),
    ],
)
def test_what_may_pass_is_waited_out(error: Exception) -> None:
    assert is_transient(error)


@pytest.mark.parametrize("error", [NoRegionError(), refusal("AccessDenied", 403)])
def test_what_stays_is_not(error: Exception) -> None:
    assert not is_transient(error)


@pytest.mark.parametrize(("cause", "passes"), [("SlowDown", True), ("AccessDenied", False)])
def test_a_transfer_fails_for_the_reason_within(cause: str, passes: bool) -> None:
    try:
        try:
            raise refusal(cause, 503 if passes else 403)
        except ClientError as error:
            raise S3UploadFailedError(f"Failed to upload: {error}")  # noqa: B904 as boto3 does
    except S3UploadFailedError as error:
        assert is_transient(error) is passes


def test_a_download_that_was_tried_too_often_fails_for_its_last_reason() -> None:
    assert is_transient(RetriesExceededError(ReadTimeoutError(endpoint_url="https://s3")))
    assert is_transient(IncompleteReadError(actual_bytes=1, expected_bytes=2))
    assert not is_transient(RetriesExceededError(refusal("AccessDenied", 403)))


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found: list[float] = []
    monkeypatch.setattr(time, "sleep", found.append)
    monkeypatch.setattr(random, "uniform", lambda low, high: high)
    return found


def failing(times: int) -> Any:
    tries: list[int] = []

    def action() -> int:
        tries.append(1)
        if len(tries) <= times:
            raise UNREACHABLE
        return len(tries)

    return action


def test_tries_are_further_and_further_apart(pauses: list[float]) -> None:
    assert retry(failing(7), lambda: False) == 8
    assert pauses == [1, 2, 4, 8, 16, 30, 30]


def test_patience_ends_when_there_is_no_time_left(pauses: list[float]) -> None:
    with pytest.raises(BotoCoreError):
        retry(failing(7), lambda: len(pauses) == 3)
    assert pauses == [1, 2, 4]


def test_one_call_at_a_time_and_nobody_waits_for_it() -> None:
    begun, go_on, calls = threading.Event(), threading.Event(), []

    def slow() -> None:
        calls.append(1)
        begun.set()
        assert go_on.wait(600)

    background = Background(slow)
    background.begin()
    assert begun.wait(600)
    background.begin()
    assert len(calls) == 1
    go_on.set()
    background.wait()
    background.begin()
    background.wait()
    assert len(calls) == 2


def test_what_the_call_raised_is_raised_by_the_next_look() -> None:
    def broken() -> None:
        raise OSError("no space left")

    background = Background(broken)
    background.begin()
    with pytest.raises(OSError, match="no space left"):
        background.wait()
    background.wait()
