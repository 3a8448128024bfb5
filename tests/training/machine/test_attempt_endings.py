"""How a machine's attempt at a run ends, other than with a model."""

import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from boto3.exceptions import S3UploadFailedError
from botocore.exceptions import EndpointConnectionError

from common import run_record
from common.run_record import Attempt, RunRecord
from tests.support import spot_site
from tests.support.spot_site import Site, request
from training.machine import attempt as spot
from training.machine import cost, process, upkeep
from training.runs import active_run as control
from training.runs.active_run import (
    CurrentRun,
    Lease,
    LeaseLostError,
    activate_run,
    current_run,
    deactivate_run,
    request_stop,
)

site = spot_site.site


def test_a_notice_ends_the_attempt_with_a_checkpoint_in_the_bucket(site: Site) -> None:
    assert site.work("checkpoint", on_look=lambda: "terminate") == 75
    assert site.keys("checkpoints/r1/") == {"001/features.npy", "001/checkpoint-0.pt"}
    assert site.record.status()["state"] == "interrupted"
    assert site.outcomes() == ["interrupted"]
    assert site.lease()["expires"] == 0
    assert current_run(site.s3, "bins") is not None
    assert site.told() == []


def test_sigterm_does_the_same_as_a_notice_but_is_not_ec2_s_own_doing(site: Site) -> None:
    assert site.work("checkpoint", on_look=lambda: signal.raise_signal(signal.SIGTERM)) == 75
    assert "001/checkpoint-0.pt" in site.keys("checkpoints/r1/")
    assert site.outcomes() == ["shut down"]
    assert site.record.status()["message"] == "the machine was shut down; trying again"
    assert site.lease()["expires"] == 0


def test_sigterm_after_a_notice_is_an_interruption(site: Site) -> None:
    def look() -> str:
        signal.raise_signal(signal.SIGTERM)
        return "terminate"

    assert site.work("checkpoint", on_look=look) == 75
    assert site.outcomes() == ["interrupted"]


@pytest.mark.parametrize("training", ["checkpoint", "importing"])
@pytest.mark.parametrize(("notice", "outcome"), [(False, "shut down"), (True, "interrupted")])
def test_a_shutdown_that_tells_training_first_is_no_failure(
    site: Site, training: str, notice: bool, outcome: str
) -> None:
    told: list[int] = []

    def look() -> str | None:
        if not told:
            told.append(int((site.folder / "machine-1" / "ready").read_text()))
            os.kill(told[0], signal.SIGTERM)
            os.waitid(os.P_PID, told[0], os.WEXITED | os.WNOWAIT)
            return None
        return "terminate" if notice else None

    assert site.work(training, on_look=look) == 75
    assert site.outcomes() == [outcome]


def test_the_next_machine_goes_on_from_the_checkpoint(site: Site) -> None:
    site.work("checkpoint", on_look=lambda: "terminate")
    assert site.work("succeeds") == 0
    assert site.record.read("metrics.json")["found"] == ["checkpoint-00001.pt", "features.npy"]
    assert site.outcomes() == ["interrupted", "succeeded"]
    assert "002/features.npy" in site.keys("checkpoints/r1/")


def test_training_that_finishes_as_the_notice_comes_has_succeeded(site: Site) -> None:
    assert site.work("finishes", on_look=lambda: "terminate") == 0
    assert site.record.status()["state"] == "succeeded"


@pytest.mark.parametrize("training", ["importing", "deaf"])
def test_training_that_takes_no_checkpoint_was_interrupted_too(site: Site, training: str) -> None:
    if training == "deaf":
        site.monkeypatch.setattr(process, "STOP_SECONDS", 0.1)
    assert site.work(training, on_look=lambda: "terminate") == 75
    assert site.outcomes() == ["interrupted"]
    assert not psutil.pid_exists(int((site.folder / "machine-1" / "ready").read_text()))


def test_who_lost_the_lease_kills_training_and_writes_nothing(site: Site) -> None:
    site.monkeypatch.setattr(control, "RENEW_SECONDS", 0)
    site.monkeypatch.setattr(spot, "STORE_SECONDS", 0)
    before: list[tuple[Any, set[str]]] = []

    def look() -> None:
        site.another_machine_takes_the_lease()
        before.append((site.record.status(), site.keys("")))

    assert site.work("checkpoint", on_look=look) == 75
    assert not psutil.pid_exists(int((site.folder / "machine-1" / "ready").read_text()))
    status, keys = before[0]
    assert site.record.status() == status
    # What was on its way when the lease was lost, none of which is read as the run's.
    late = {"runs/r1/metrics.jsonl", "runs/r1/logs/i-1.log", "checkpoints/r1/001/features.npy"}
    assert site.keys("") - late == keys - late
    assert site.lease()["holder"] == "i-other"
    assert site.model() == "none"


def test_who_lost_the_lease_over_its_checkpoint_leaves_the_status_to_the_other(site: Site) -> None:
    site.monkeypatch.setattr(control, "RENEW_SECONDS", 0)
    site.monkeypatch.setattr(spot.RunAttempt, "_upkeep", lambda attempt: None)

    def look() -> str:
        site.another_machine_takes_the_lease()
        return "terminate"

    assert site.work("checkpoint", on_look=look) == 75
    assert site.record.status()["state"] == "running"
    assert site.outcomes() == [""]
    assert "001/checkpoint-0.pt" in site.keys("checkpoints/r1/")


def test_who_lost_the_lease_over_its_upload_leaves_the_model_to_the_other(site: Site) -> None:
    site.monkeypatch.setattr(control, "RENEW_SECONDS", 0)
    before = site.model()
    upload = RunRecord.upload

    def slow_upload(record: RunRecord, file: Path, name: str | None = None) -> None:
        upload(record, file, name)
        if file.name == "model.tar.gz":
            site.another_machine_takes_the_lease()

    site.monkeypatch.setattr(RunRecord, "upload", slow_upload)
    assert site.work("succeeds") == 75
    assert site.model() == before
    assert site.record.status()["state"] == "running"


UNREACHABLE = EndpointConnectionError(endpoint_url="https://s3")


def test_training_goes_on_while_s3_does_not_answer(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    site.monkeypatch.setattr(control, "RENEW_SECONDS", 0)
    site.monkeypatch.setattr(spot, "STORE_SECONDS", 0)
    renew, states = Lease.renew, ["up"]

    def broken_then_mended(lease: Lease) -> None:
        if states[-1] == "down":
            raise UNREACHABLE
        renew(lease)

    def look() -> str | None:
        if states[-1] == "up":
            states.append("down")
        if caplog.text.count("training continues, but its progress could not be stored") > 2:
            states.append("up again")
        stored = "001/features.npy" in site.keys("checkpoints/r1/")
        return "terminate" if stored and states[-1] == "up again" else None

    site.monkeypatch.setattr(Lease, "renew", broken_then_mended)
    assert site.work("checkpoint", on_look=look) == 75
    assert site.outcomes() == ["interrupted"]


@pytest.mark.parametrize("name", ["model.tar.gz", "weights.pth"])
def test_results_wait_for_an_s3_that_answers_again(site: Site, name: str) -> None:
    site.monkeypatch.setattr(upkeep, "PAUSE_SECONDS", 0.01)
    upload, tries = RunRecord.upload, []

    def broken_at_first(record: RunRecord, file: Path, name_: str | None = None) -> None:
        if file.name == name:
            tries.append(file)
            if len(tries) < 4:
                raise UNREACHABLE
        upload(record, file, name_)

    site.monkeypatch.setattr(RunRecord, "upload", broken_at_first)
    assert site.work("succeeds") == 0
    assert site.outcomes() == ["succeeded"]
    assert len(tries) == 4


def test_a_refusal_is_not_waited_out(site: Site) -> None:
    def refused(*_: object) -> None:
        raise S3UploadFailedError("AccessDenied")

    site.monkeypatch.setattr(RunRecord, "upload", refused)
    assert site.work("succeeds") == 75
    assert site.outcomes() == ["failed"]


def test_data_that_cannot_be_fetched_yet_is_waited_for(site: Site) -> None:
    site.monkeypatch.setattr(upkeep, "PAUSE_SECONDS", 0.01)
    fetch, tries = spot.download_prefix, []

    def broken_at_first(*arguments: Any, **more: Any) -> int:
        tries.append(arguments)
        if len(tries) < 4:
            raise UNREACHABLE
        return fetch(*arguments, **more)

    site.monkeypatch.setattr(spot, "download_prefix", broken_at_first)
    assert site.work("succeeds") == 0
    assert site.outcomes() == ["succeeded"]


def test_who_loses_the_lease_while_s3_does_not_answer_leaves_the_record_alone(site: Site) -> None:
    site.monkeypatch.setattr(upkeep, "PAUSE_SECONDS", 0.01)
    site.monkeypatch.setattr(control, "RENEW_SECONDS", 0)
    set_status = RunRecord.set_status

    def broken(record: RunRecord, state: Any, message: str, attempts: Any) -> None:
        if state == "succeeded":
            site.another_machine_takes_the_lease()
            raise UNREACHABLE
        set_status(record, state, message, attempts)

    site.monkeypatch.setattr(RunRecord, "set_status", broken)
    assert site.work("succeeds") == 75
    assert site.record.status()["state"] == "running"
    assert current_run(site.s3, "bins") is not None


@pytest.mark.parametrize("training", ["succeeds", "fails"])
def test_a_machine_frozen_before_its_last_word_does_not_overwrite_its_successors(
    site: Site, training: str
) -> None:
    set_status, successor = RunRecord.set_status, RunRecord(site.s3, "bins", "r1")

    def frozen_first(record: RunRecord, state: Any, message: str, attempts: Any) -> None:
        if state in {"succeeded", "interrupted"}:  # its lease was looked at before
            site.another_machine_takes_the_lease()
            site.monkeypatch.setattr(run_record, "WRITER", "of-the-successor")
            set_status(successor, "running", "attempt 2 on i-two", attempts)
            site.monkeypatch.setattr(run_record, "WRITER", "of-the-frozen-one")
        set_status(record, state, message, attempts)

    site.monkeypatch.setattr(RunRecord, "set_status", frozen_first)
    assert site.work(training) == 75
    assert site.record.status()["message"] == "attempt 2 on i-two"
    assert current_run(site.s3, "bins") is not None
    assert site.told() == []


def test_a_failing_training_is_tried_three_times(site: Site) -> None:
    assert site.work("fails") == 75
    assert site.record.status()["state"] == "interrupted"
    assert "exit code 1" in site.record.status()["message"]
    assert site.lease()["expires"] == 0
    assert site.work("fails") == 75
    assert site.told() == []
    assert site.work("fails") == 0
    assert site.record.status()["state"] == "failed"
    assert current_run(site.s3, "bins") is None
    [(subject, message)] = site.told()
    assert subject == "Training run r1 failed"
    assert "exit code 1" in message
    assert site.model() == "none"


def test_interruptions_are_no_failures(site: Site) -> None:
    for training in ("fails", "checkpoint", "fails", "checkpoint", "checkpoint"):
        assert site.work(training, on_look=lambda: "terminate") == 75
    assert site.work("fails") == 0
    assert site.outcomes().count("failed") == 3


def test_failures_before_a_resume_do_not_count(site: Site) -> None:
    assert [site.work("fails") for _ in range(3)] == [75, 75, 0]
    request(site, earlier=3)
    activate_run(site.s3, "bins", CurrentRun(run_id="r1", runtime="runtime/a/"))
    assert [site.work("fails") for _ in range(3)] == [75, 75, 0]
    assert site.outcomes() == ["failed"] * 6


def test_a_wish_to_stop_takes_a_checkpoint_and_ends_the_run(site: Site) -> None:
    site.monkeypatch.setattr(spot, "ASK_SECONDS", 0)
    assert (
        site.work("checkpoint", on_look=lambda: request_stop(site.s3, "bins", "r1") and None) == 0
    )
    assert site.record.status()["state"] == "stopped"
    assert site.outcomes() == ["stopped"]
    assert "001/checkpoint-0.pt" in site.keys("checkpoints/r1/")
    assert site.told() == [("Training run r1 stopped", "stopped by the user")]
    assert current_run(site.s3, "bins") is None
    assert site.record.read("cost.json")["dollars"] > 0


def test_a_machine_that_starts_after_the_wish_to_stop_does_not_train(site: Site) -> None:
    request_stop(site.s3, "bins", "r1")
    assert site.work("succeeds") == 0
    assert site.record.status()["state"] == "stopped"
    assert site.record.status()["attempts"] == []


def test_the_wish_to_stop_is_not_looked_for_at_each_poll(site: Site) -> None:
    looks: list[object] = []
    site.monkeypatch.setattr(spot, "stop_requested", lambda *it: bool(looks.append(it)))
    site.work("checkpoint", on_look=lambda: "terminate" if site.metadata.looks > 20 else None)
    assert looks == []


def test_an_attempt_that_ended_without_a_word_is_lost(site: Site) -> None:
    silent = [
        Attempt(
            instance_id=f"i-{time}",
            instance_type="c7i.large",
            zone="us-east-1a",
            purchase="spot",
            started=time,
        )
        for time in ("2026-01-01T00:00:00+00:00", "2026-01-01T00:10:00+00:00")
    ]
    site.record.set_status("running", "", silent)
    site.monkeypatch.setenv("BOOT_STARTED", "2026-01-01T00:15:00Z")
    site.work("succeeds")
    first, second, _ = site.record.status()["attempts"]
    assert (first["outcome"], first["ended"]) == ("lost", "2026-01-01T00:10:00+00:00")
    assert (second["outcome"], second["ended"]) == ("lost", "2026-01-01T00:15:00Z")


def test_training_that_says_nothing_for_long_has_failed(site: Site) -> None:
    site.monkeypatch.setattr(process, "STOP_SECONDS", 0.1)
    site.monkeypatch.setattr(spot, "QUIET_SECONDS", 0.3)
    assert site.work("deaf") == 75
    assert site.outcomes() == ["failed"]
    assert "hung: nothing printed and no file changed" in site.record.status()["message"]
    assert not psutil.pid_exists(int((site.folder / "machine-1" / "ready").read_text()))


def test_a_recommendation_is_passed_on_once(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    looks = 0

    def look() -> str | None:
        nonlocal looks
        looks += 1
        site.metadata.rebalance_recommendation = "{}"
        return "terminate" if looks > 5 else None

    assert site.work("counts", on_look=look) == 75
    assert (site.folder / "machine-1" / "asked").read_text() == "x"
    assert caplog.text.count("rebalance recommendation") == 1


def test_the_log_of_the_machine_is_kept_while_it_works(site: Site) -> None:
    site.monkeypatch.setattr(spot, "STORE_SECONDS", 0)
    work = site.folder / "machine-1"

    def look() -> str | None:
        if site.keys() >= {"logs/i-1.log"}:
            return "terminate"
        (work / "machine.log").write_text("boot: training")
        return None

    assert site.work("checkpoint", on_look=look) == 75


def test_a_run_past_its_deadline_is_refused(site: Site) -> None:
    request(site, deadline="2026-01-01T00:00:00+00:00")
    assert site.work("succeeds") == 0
    assert site.record.status()["state"] == "failed"
    assert site.record.status()["attempts"] == []
    assert [subject for subject, _ in site.told()] == ["Training run r1 failed"]
    assert current_run(site.s3, "bins") is None
    assert list((site.folder / "machine-1").iterdir()) == []


def test_near_its_deadline_a_run_is_ended_and_says_so(site: Site) -> None:
    def look() -> None:
        site.monkeypatch.setattr(spot, "CLOSING_SECONDS", 1e12)

    assert site.work("checkpoint", on_look=look) == 0
    assert site.record.status()["state"] == "failed"
    assert site.record.status()["message"].startswith(
        "training did not finish in time; the deadline is 2099"
    )
    assert "001/checkpoint-0.pt" in site.keys("checkpoints/r1/")
    assert [subject for subject, _ in site.told()] == ["Training run r1 failed"]
    assert current_run(site.s3, "bins") is None


@pytest.mark.parametrize("error", [S3UploadFailedError("AccessDenied"), OSError("No space left")])
def test_an_attempt_that_cannot_reach_its_data_is_tried_three_times(
    site: Site, error: Exception
) -> None:
    def broken(*_: object, **__: object) -> int:
        raise error

    site.monkeypatch.setattr(spot, "download_prefix", broken)
    assert [site.work("succeeds") for _ in range(3)] == [75, 75, 0]
    assert site.outcomes() == ["failed"] * 3
    assert site.record.status()["state"] == "failed"
    assert type(error).__name__ in site.record.status()["message"]
    assert [subject for subject, _ in site.told()] == ["Training run r1 failed"]


def test_a_record_that_cannot_be_read_is_left_as_it_is(site: Site) -> None:
    before = site.record.status()

    def broken(*_: object) -> None:
        raise S3UploadFailedError("AccessDenied")

    site.monkeypatch.setattr(RunRecord, "status", broken)
    with pytest.raises(S3UploadFailedError):
        site.work("succeeds")
    assert site.record.read("status.json") == before


def test_a_run_that_ends_while_a_machine_waits_is_not_run_again(site: Site) -> None:
    first = Lease(site.s3, "bins", run_id="r1", holder="i-other")
    first.acquire()

    def the_first_machine_finishes(_: float) -> None:
        site.record.set_status("succeeded", "", [])
        deactivate_run(site.s3, "bins", CurrentRun(run_id="r1", runtime="runtime/a/"))
        first.release()

    clock = SimpleNamespace(
        time=time.time, monotonic=time.monotonic, sleep=the_first_machine_finishes
    )
    site.monkeypatch.setattr(control, "time", clock)
    assert site.work("succeeds") == 75
    assert site.record.status()["state"] == "succeeded"
    assert site.outcomes() == []
    assert site.lease()["expires"] == 0


@pytest.mark.parametrize("error", [UNREACHABLE, LeaseLostError("i-1 no longer holds the lease")])
@pytest.mark.parametrize("call", ["lease", "pointer"])
def test_once_the_record_says_how_a_run_ended_nothing_changes_it(
    site: Site, error: Exception, call: str
) -> None:
    def broken(*_: object) -> None:
        raise error

    owner, name = (Lease, "release") if call == "lease" else (spot, "deactivate_run")
    site.monkeypatch.setattr(owner, name, broken)
    assert site.work("succeeds") == 0
    assert site.record.status()["state"] == "succeeded"
    assert site.outcomes() == ["succeeded"]
    assert [subject for subject, _ in site.told()] == ["Training run r1 succeeded"]
    assert (current_run(site.s3, "bins") is None) is (call == "lease")
    assert (site.lease()["expires"] == 0) is (call == "pointer")


def test_an_interrupted_attempt_stays_one_when_its_lease_cannot_be_released(site: Site) -> None:
    def broken(*_: object) -> None:
        raise UNREACHABLE

    site.monkeypatch.setattr(Lease, "release", broken)
    assert site.work("checkpoint", on_look=lambda: "terminate") == 75
    assert site.outcomes() == ["interrupted"]


def test_a_clock_that_was_ahead_loses_no_model(site: Site) -> None:
    ahead = Attempt(
        instance_id="i-0",
        instance_type="c7i.large",
        zone="us-east-1a",
        purchase="spot",
        started="2026-01-01T00:01:00+00:00",
        ended="2026-01-01T00:00:00+00:00",
        outcome="stopped",
    )
    site.record.set_status("requested", "", [ahead])
    assert site.work("succeeds") == 0
    assert site.record.status()["state"] == "succeeded"
    assert 0 <= site.record.read("cost.json")["seconds"] < 60


def test_a_bill_that_cannot_be_made_loses_no_model(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("lines")

    site.monkeypatch.setattr(cost, "run_bill", broken)
    assert site.work("succeeds") == 0
    assert site.record.status()["state"] == "succeeded"
    assert "KeyError: 'lines'" in caplog.text


def test_each_attempt_is_paid_as_it_was_bought(site: Site) -> None:
    site.work("checkpoint", on_look=lambda: "terminate", instance_life_cycle="on-demand")
    site.work("succeeds")
    assert [each["purchase"] for each in site.record.status()["attempts"]] == ["on_demand", "spot"]
    names = {line["name"] for line in site.record.read("cost.json")["lines"]}
    assert {"c7i.large, on-demand", "c7i.large, spot"} <= names


@pytest.mark.parametrize("error", [UNREACHABLE, S3UploadFailedError("AccessDenied")])
def test_a_log_that_cannot_be_stored_ends_no_attempt(
    site: Site, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    site.monkeypatch.setattr(spot, "STORE_SECONDS", 0)
    upload = RunRecord.upload

    def broken(record: RunRecord, file: Path, name: str | None = None) -> None:
        if file.name == "machine.log":
            raise error
        upload(record, file, name)

    def look() -> str | None:
        (site.folder / "machine-1" / "machine.log").write_text("boot: training")
        return "terminate" if "the log could not be stored" in caplog.text else None

    site.monkeypatch.setattr(RunRecord, "upload", broken)
    assert site.work("checkpoint", on_look=look) == 75
    assert site.outcomes() == ["interrupted"]
