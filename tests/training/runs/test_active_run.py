"""Which run is active, and which machine may write it, when two want to."""

import json
from collections.abc import Callable
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from training.runs import active_run as control
from training.runs.active_run import (
    LEASE_SECONDS,
    RENEW_SECONDS,
    CurrentRun,
    Lease,
    LeaseLostError,
    RunActiveError,
    activate_run,
    current_run,
    deactivate_run,
)

FIRST = CurrentRun(run_id="first", runtime="runtime/a/")
SECOND = CurrentRun(run_id="second", runtime="runtime/b/")


class Clock:
    """Stands for the module `time`; `meanwhile` is called in each sleep."""

    def __init__(self) -> None:
        self.now = 1_000_000.0
        self.meanwhile: Callable[[], object] = lambda: None

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.meanwhile()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(control, "time", clock)
    return clock


@pytest.fixture
def s3(aws: None) -> Any:
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket="bins")
    return s3


def lease_of(s3: Any, holder: str) -> Lease:
    return Lease(s3, "bins", run_id="first", holder=holder)


def stored(s3: Any) -> Any:
    return json.loads(s3.get_object(Bucket="bins", Key=control.LEASE)["Body"].read())


def refusal(code: str) -> Callable[..., Any]:
    """A put_object that S3 answers with the error `code`."""

    def put_object(**_: Any) -> Any:
        raise ClientError({"Error": {"Code": code, "Message": ""}}, "PutObject")

    return put_object


def test_no_run_is_active_at_first(s3: Any) -> None:
    assert current_run(s3, "bins") is None


def test_of_two_starts_one_wins_and_the_other_is_told_which(s3: Any) -> None:
    activate_run(s3, "bins", FIRST)
    with pytest.raises(RunActiveError, match="run first is active"):
        activate_run(s3, "bins", SECOND)
    assert current_run(s3, "bins") == FIRST


def test_after_the_end_of_a_run_the_next_one_may_start(s3: Any) -> None:
    activate_run(s3, "bins", FIRST)
    assert deactivate_run(s3, "bins", FIRST)
    assert current_run(s3, "bins") is None
    activate_run(s3, "bins", SECOND)
    assert current_run(s3, "bins") == SECOND


def test_a_run_that_ends_while_it_is_looked_up_is_not_active(
    s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "list_keys", lambda *_: [control.CURRENT])
    assert current_run(s3, "bins") is None


def test_the_lease_names_run_holder_and_end(s3: Any, clock: Clock) -> None:
    lease_of(s3, "i-one").acquire()
    expires = clock.now + LEASE_SECONDS
    assert stored(s3) == {"run_id": "first", "holder": "i-one", "expires": expires}


def test_a_second_machine_waits_until_the_lease_of_a_lost_one_expires(
    s3: Any, clock: Clock
) -> None:
    start = clock.now
    lease_of(s3, "i-one").acquire()
    lease_of(s3, "i-two").acquire()
    assert LEASE_SECONDS <= clock.now - start <= LEASE_SECONDS + 1
    assert stored(s3)["holder"] == "i-two"


def test_a_second_machine_waits_for_as_long_as_the_first_renews(s3: Any, clock: Clock) -> None:
    start = clock.now
    first = lease_of(s3, "i-one")
    first.acquire()
    clock.meanwhile = lambda: first.renew() if clock.now - start <= 120 else None
    lease_of(s3, "i-two").acquire()
    assert 120 + LEASE_SECONDS - RENEW_SECONDS <= clock.now - start <= 121 + LEASE_SECONDS


def test_a_released_lease_is_taken_at_once(s3: Any, clock: Clock) -> None:
    start = clock.now
    first = lease_of(s3, "i-one")
    first.acquire()
    first.release()
    lease_of(s3, "i-two").acquire()
    assert clock.now == start
    assert stored(s3)["holder"] == "i-two"


def test_a_lease_is_written_again_only_when_it_is_due(s3: Any, clock: Clock) -> None:
    lease = lease_of(s3, "i-one")
    lease.acquire()
    expires = stored(s3)["expires"]
    clock.now += RENEW_SECONDS - 1
    lease.renew()
    assert stored(s3)["expires"] == expires
    clock.now += 1
    lease.renew()
    assert stored(s3)["expires"] == expires + RENEW_SECONDS


@pytest.mark.parametrize("leave", [Lease.renew, Lease.release])
def test_who_lost_the_lease_is_told_and_writes_nothing(
    leave: Callable[[Lease], None], s3: Any, clock: Clock
) -> None:
    lost = lease_of(s3, "i-one")
    lost.acquire()
    clock.now += LEASE_SECONDS
    lease_of(s3, "i-two").acquire()
    before = stored(s3)
    with pytest.raises(LeaseLostError, match="i-one no longer holds the lease"):
        leave(lost)
    assert stored(s3) == before


def test_of_two_machines_that_see_an_expired_lease_one_gets_it(
    s3: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease_of(s3, "i-zero").acquire()
    clock.now += LEASE_SECONDS
    start = clock.now
    read = control._read

    def read_then_another_takes_it(*arguments: Any) -> Any:
        seen = read(*arguments)
        monkeypatch.setattr(control, "_read", read)
        lease_of(s3, "i-two").acquire()
        return seen

    monkeypatch.setattr(control, "_read", read_then_another_takes_it)
    lease_of(s3, "i-one").acquire()
    assert clock.now - start >= LEASE_SECONDS


@pytest.mark.parametrize("code", ["ConditionalRequestConflict", "NoSuchKey"])
def test_a_lease_that_s3_will_not_renew_is_lost(
    code: str, s3: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = lease_of(s3, "i-one")
    lease.acquire()
    clock.now += RENEW_SECONDS
    monkeypatch.setattr(s3, "put_object", refusal(code))
    with pytest.raises(LeaseLostError, match="i-one no longer holds the lease"):
        lease.renew()


@pytest.mark.parametrize("code", ["ConditionalRequestConflict", "NoSuchKey"])
def test_a_machine_that_s3_refuses_the_lease_asks_again(
    code: str, s3: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = clock.now
    put_object = s3.put_object
    monkeypatch.setattr(s3, "put_object", refusal(code))
    clock.meanwhile = lambda: monkeypatch.setattr(s3, "put_object", put_object)
    lease_of(s3, "i-one").acquire()
    assert clock.now == start + 1
    assert stored(s3)["holder"] == "i-one"


def test_another_error_of_s3_is_not_taken_for_a_lost_lease(s3: Any, clock: Clock) -> None:
    lease = lease_of(s3, "i-one")
    lease.acquire()
    clock.now += RENEW_SECONDS
    s3.delete_object(Bucket="bins", Key=control.LEASE)
    s3.delete_bucket(Bucket="bins")
    with pytest.raises(s3.exceptions.NoSuchBucket):
        lease.renew()


@pytest.mark.parametrize("renewals", [0, 1])
def test_a_renewal_whose_answer_was_lost_is_still_a_renewal(
    s3: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch, renewals: int
) -> None:
    lease = lease_of(s3, "i-one")
    lease.acquire()
    for _ in range(renewals):
        clock.now += RENEW_SECONDS
        lease.renew()
    clock.now += RENEW_SECONDS
    put, answers = s3.put_object, [True]

    def lose_the_answer(**request: Any) -> Any:
        answer = put(**request)
        if answers:
            answers.clear()
            raise EndpointConnectionError(endpoint_url="https://s3")
        return answer

    monkeypatch.setattr(s3, "put_object", lose_the_answer)
    with pytest.raises(EndpointConnectionError):
        lease.renew()
    clock.now += 1
    lease.renew()
    assert stored(s3)["expires"] == clock.now + LEASE_SECONDS
    clock.now += RENEW_SECONDS
    lease.renew()
    assert stored(s3)["expires"] == clock.now + LEASE_SECONDS
