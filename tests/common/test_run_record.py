"""What a run's record in the bucket says, and for how long its machines are paid."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError
from hypothesis import given
from hypothesis import strategies as st

from common import run_record as module
from common.run_record import (
    VERSION,
    Attempt,
    Request,
    RunRecord,
    StatusChangedError,
    billed_seconds,
    close_last_attempt,
    utc_now,
)

START = datetime(2026, 11, 23, 8, tzinfo=UTC)


@pytest.fixture
def record(aws: None) -> RunRecord:
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket="bins")
    return RunRecord(s3, "bins", "r1")


def attempt(start: float, end: float | None = None) -> Attempt:
    """A machine's attempt from `start` to `end`, seconds after START."""
    attempt = Attempt(
        instance_id="i-1",
        instance_type="c7i.large",
        zone="us-east-1a",
        purchase="spot",
        started=(START + timedelta(seconds=start)).isoformat(),
    )
    if end is not None:
        attempt["ended"] = (START + timedelta(seconds=end)).isoformat()
    return attempt


def request(deadline: str = "2099-01-01T00:00:00+00:00") -> Request:
    return Request(
        run_id="r1",
        dataset="photos",
        arch="resnet50",
        train_arguments=[],
        deadline=deadline,
        estimate={},
        mode="head",
        ensemble_size=1,
        version=VERSION,
        epochs=1,
        chunks=1,
        runtime="runtime/a/",
    )


def seconds(*attempts: Attempt) -> list[float]:
    return billed_seconds(list(attempts), request())


def test_everything_of_a_run_is_under_its_own_prefix(record: RunRecord) -> None:
    record.write("cost.json", {"dollars": 0.01})
    listed: Any = record.s3.list_objects_v2(Bucket="bins")["Contents"]
    assert [item["Key"] for item in listed] == ["runs/r1/cost.json"]
    assert record.uri("model.tar.gz") == "s3://bins/runs/r1/model.tar.gz"
    assert record.read("cost.json") == {"dollars": 0.01}


def test_a_browser_shows_what_is_written_as_json(record: RunRecord) -> None:
    record.write("cost.json", {})
    head = record.s3.head_object(Bucket="bins", Key="runs/r1/cost.json")
    assert head["ContentType"] == "application/json"


def test_a_status_says_when_it_was_written(record: RunRecord) -> None:
    before = utc_now()
    record.set_status("running", "attempt 1 on i-1", [attempt(0)])
    status = record.status()
    assert (status["state"], status["message"]) == ("running", "attempt 1 on i-1")
    assert status["attempts"] == [attempt(0)]
    assert before <= status["updated"] <= utc_now()


def test_who_read_a_status_writes_only_over_what_it_read(record: RunRecord) -> None:
    other = RunRecord(record.s3, "bins", "r1")
    record.set_status("requested", "", [])
    other.status()
    record.set_status("running", "attempt 1 on i-1", [])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "WRITER", "another process")
        with pytest.raises(StatusChangedError, match="changed the status of run r1"):
            other.set_status("failed", "lost", [])
        assert other.status()["state"] == "running"
        other.set_status("failed", "lost", [])
    with pytest.raises(StatusChangedError):
        record.set_status("succeeded", "", [])


def test_a_status_whose_answer_was_lost_is_written_again(
    record: RunRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    record.set_status("requested", "", [])
    put_object, calls = record.s3.put_object, []

    def answer_lost(**request: Any) -> Any:
        answer = put_object(**request)
        calls.append(request)
        if len(calls) == 1:
            raise EndpointConnectionError(endpoint_url="s3")
        return answer

    monkeypatch.setattr(record.s3, "put_object", answer_lost)
    with pytest.raises(EndpointConnectionError):
        record.set_status("running", "", [])
    record.set_status("running", "again", [])
    assert record.status()["message"] == "again"


def test_what_was_never_written_is_an_error_of_s3(record: RunRecord) -> None:
    with pytest.raises(ClientError, match="NoSuchKey"):
        record.status()


def test_files_keep_their_name_unless_told_another(record: RunRecord, tmp_path: Path) -> None:
    (tmp_path / "loss.png").write_bytes(b"picture")
    record.upload(tmp_path / "loss.png")
    record.upload(tmp_path / "loss.png", "other.png")
    for name in ("loss.png", "other.png"):
        record.download(name, tmp_path / "copy.png")
        assert (tmp_path / "copy.png").read_bytes() == b"picture"


def test_times_are_utc_and_whole_seconds() -> None:
    time = datetime.fromisoformat(utc_now())
    assert time.utcoffset() == timedelta(0)
    assert time.microsecond == 0


def test_a_run_without_a_machine_is_not_paid() -> None:
    assert seconds() == []


@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 10_000))))
def test_attempts_are_paid_and_the_time_between_them_is_not(spans: list[tuple[int, int]]) -> None:
    attempts, now = [], 0
    for pause, work in spans:
        attempts.append(attempt(now + pause, now + pause + work))
        now += pause + work
    assert seconds(*attempts) == [work for _, work in spans]


def test_a_machine_that_vanished_is_paid_until_the_next_one_started() -> None:
    assert seconds(attempt(0), attempt(100, 130)) == [100, 30]


def test_a_machine_still_at_work_is_paid_until_now() -> None:
    started = (datetime.now(UTC) - timedelta(seconds=100) - START).total_seconds()
    assert seconds(attempt(started)) == pytest.approx([100], abs=5)


def test_a_machine_that_never_reported_its_end_is_paid_until_the_deadline_at_most() -> None:
    before_now = datetime.now(UTC) - timedelta(hours=1)
    start = (before_now - timedelta(minutes=10) - START).total_seconds()
    assert billed_seconds([attempt(start)], request(before_now.isoformat())) == [600]


def test_clocks_that_differ_make_no_time_below_zero() -> None:
    assert seconds(attempt(60, 0), attempt(0, 30)) == [0, 30]
    assert seconds(attempt(100), attempt(40, 50)) == [0, 10]


def test_a_silent_attempt_is_closed_and_paid_as_before() -> None:
    deadline = (START + timedelta(hours=1)).isoformat()
    attempts = [attempt(0, 100), attempt(1000)]
    ended = close_last_attempt(attempts, request(deadline), "lost")
    first, last = ended
    assert first == attempts[0]
    assert (last["outcome"], last["ended"] <= utc_now()) == ("lost", True)
    paid = billed_seconds(attempts, request(deadline))
    assert billed_seconds(ended, request(deadline)) == pytest.approx(paid, abs=2)
    assert "ended" not in attempts[-1], "what was read stays as it was"
    assert close_last_attempt(ended, request(deadline), "stopped") == ended
    assert close_last_attempt([], request(deadline), "stopped") == []
