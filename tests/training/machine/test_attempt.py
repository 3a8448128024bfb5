"""What a machine's attempt at a run leaves: results, record, cost, log."""

import io
import logging
import os
import signal
import sys
import tarfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import boto3
import pytest
from botocore.exceptions import ClientError, NoCredentialsError
from urllib3.exceptions import HTTPError

from common.choices import Purchase
from costs.__main__ import main as costs
from costs.prices import load_prices
from tests.support import spot_site
from tests.support.spot_site import Site, request
from training.machine import __main__ as machine
from training.machine import attempt as spot
from training.machine import upkeep
from training.machine.upkeep import RateLimiter
from training.runs import active_run as control
from training.runs.active_run import LEASE, CurrentRun, Lease, current_run, deactivate_run

site = spot_site.site


def test_a_run_that_succeeds_leaves_a_model_and_tells(site: Site) -> None:
    assert site.work("succeeds") == 0
    uri = "s3://bins/runs/r1/model.tar.gz"
    results = {
        "metrics.jsonl",
        "metrics.json",
        "loss.png",
        "report.html",
        "weights.pth",
        "cost.json",
        "traces.tar.gz",
        "model.tar.gz",
    }
    assert results <= site.keys()
    assert site.model() == uri
    assert site.record.status()["state"] == "succeeded"
    assert site.told() == [("Training run r1 succeeded", f"model at {uri}")]
    assert current_run(site.s3, "bins") is None
    assert site.lease()["expires"] == 0


def test_the_model_s_files_are_at_the_root_of_its_archive(site: Site) -> None:
    site.work("succeeds")
    archive = site.s3.get_object(Bucket="bins", Key="runs/r1/model.tar.gz")["Body"].read()
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        assert tar.getnames() == ["model.json", "model.onnx"]


def test_the_traces_are_those_that_training_left(site: Site) -> None:
    site.work("succeeds")
    archive = site.s3.get_object(Bucket="bins", Key="runs/r1/traces.tar.gz")["Body"].read()
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        assert tar.getnames() == ["events", "events/events.out.tfevents.1"]


def test_training_gets_the_data_the_weights_and_the_flags_of_the_request(site: Site) -> None:
    site.work("succeeds")
    options = site.record.read("metrics.json")["options"]
    work = site.folder / "machine-1"
    assert options["--epochs"] == "7"
    assert (options["--arch"], options["--run-id"]) == ("resnet50", "r1")
    assert Path(options["--data"], "manifest.json").read_text() == "{}"
    assert Path(options["--weights"]).read_text() == "tensors"
    assert Path(options["--output"]).is_relative_to(work)


def test_the_record_says_which_machine_worked_when(site: Site) -> None:
    site.work("succeeds", instance_type="m7i.large", availability_zone="us-east-1b")
    [attempt] = site.record.status()["attempts"]
    assert attempt["instance_id"] == "i-1"
    assert (attempt["instance_type"], attempt["zone"]) == ("m7i.large", "us-east-1b")
    assert attempt["started"] <= attempt["ended"]
    assert attempt["outcome"] == "succeeded"


def test_the_cost_is_that_of_a_spot_machine(site: Site) -> None:
    site.work("succeeds")
    cost = site.record.read("cost.json")
    assert (cost["instance_type"], cost["lines"][0]["name"]) == ("c7i.large", "c7i.large, spot")
    assert 0 < cost["dollars"] < 0.01
    assert cost["dollars"] == pytest.approx(sum(line["dollars"] for line in cost["lines"]))


def test_an_on_demand_machine_is_not_counted_as_spot(site: Site) -> None:
    site.work("succeeds", instance_life_cycle="on-demand")
    assert site.record.status()["attempts"][0]["purchase"] == "on_demand"
    cost = site.record.read("cost.json")
    assert cost["lines"][0]["name"] == "c7i.large, on-demand"


def test_a_spot_machine_puts_the_fallback_off_for_as_long_as_it_works(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    request(site, fallback_minutes=30)
    for group in ("trainers", "reserve"):
        site.set_desired(group)
    monkeypatch.setattr(spot, "REBOOK_SECONDS", 0.0)
    booked: list[datetime] = []

    def look() -> object:
        booked.append(site.fallback()["StartTime"])
        return "terminate" if booked[-1] > booked[0] else None

    before = datetime.now(UTC).replace(microsecond=0)
    site.work("checkpoint", on_look=look)
    assert booked[0] >= before + timedelta(minutes=30)
    assert site.fallback()["DesiredCapacity"] == 1, "the interruption leaves it booked"
    assert site.desired() == {"trainers": 1, "reserve": 0}


def test_no_fallback_comes_after_the_deadline(site: Site) -> None:
    deadline = datetime.now(UTC) + timedelta(minutes=15)
    request(site, deadline=deadline.isoformat())
    site.work("succeeds")
    assert site.fallback() is None


def test_an_on_demand_machine_ends_the_wait_for_spot(site: Site) -> None:
    for group in ("trainers", "reserve"):
        site.set_desired(group)
    site.work("succeeds", instance_life_cycle="on-demand")
    assert site.desired() == {"trainers": 0, "reserve": 1}


def test_an_on_demand_machine_leaves_another_one_booked(site: Site) -> None:
    site.work("checkpoint", instance_life_cycle="on-demand", on_look=lambda: "terminate")
    assert site.fallback()["DesiredCapacity"] == 1


def test_the_group_of_the_fallback_ends_with_the_run_however_it_came_about(site: Site) -> None:
    deadline = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=2)
    request(site, deadline=deadline.isoformat())
    site.work("succeeds")
    (end,) = (each for each in site.booked("reserve") if each["DesiredCapacity"] == 0)
    assert (end["ScheduledActionName"], end["StartTime"]) == ("end-reserve", deadline)


def test_a_machine_that_is_shut_down_while_it_waits_changes_nothing(site: Site) -> None:
    """The other group's machine has set this one's to 0, and may itself be taken back now."""
    site.set_desired("trainers")
    site.another_machine_takes_the_lease()

    def shut_down(_: float) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        site.s3.delete_object(Bucket="bins", Key=LEASE)

    clock = SimpleNamespace(time=time.time, monotonic=time.monotonic, sleep=shut_down)
    site.monkeypatch.setattr(control, "time", clock)
    assert site.work("succeeds", instance_life_cycle="on-demand") == 75
    assert site.desired() == {"trainers": 1, "reserve": 0}
    assert (site.outcomes(), site.fallback()) == ([], None)
    assert "lease.json" not in site.keys("control/"), "it waits for nothing any more"


def test_a_machine_that_is_told_to_go_as_it_takes_the_lease_gives_it_back(site: Site) -> None:
    site.set_desired("trainers")
    active = current_run(site.s3, "bins")

    def shut_down() -> CurrentRun | None:
        os.kill(os.getpid(), signal.SIGTERM)
        return active

    looks = iter((lambda: active, shut_down))
    for module in (machine, spot):
        site.monkeypatch.setattr(module, "current_run", lambda *_: next(looks)())
    assert site.work("succeeds", instance_life_cycle="on-demand") == 75
    assert site.desired()["trainers"] == 1
    assert (site.outcomes(), site.lease()["expires"]) == ([], 0)


@pytest.mark.parametrize("asked", ["stop_requested", "shutting_down"])
def test_a_machine_that_is_on_its_way_out_puts_nothing_off(site: Site, asked: str) -> None:
    """`stop` may have cancelled the fallback by then, and set both groups to 0."""
    site.monkeypatch.setattr(spot, "REBOOK_SECONDS", 0.0)
    book_fallback = Mock()
    site.monkeypatch.setattr(spot, "book_fallback", book_fallback)

    def train(attempt: spot.RunAttempt) -> spot.Ending:
        attempt._upkeep()
        assert book_fallback.call_count == 2, "at the beginning, and while it works"
        attempt.stop_requested = asked == "stop_requested"
        attempt.shutting_down = lambda: asked == "shutting_down"
        attempt.stop_checks = RateLimiter(3600)
        attempt._upkeep()
        return spot.Ending("shut down", "-")

    site.monkeypatch.setattr(spot.RunAttempt, "_train", train)
    site.work("succeeds")
    assert book_fallback.call_count == 2


def test_the_lease_is_kept_while_the_data_comes(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in ("datasets/photos/train-00000.tar", "checkpoints/r1/001/features.npy"):
        site.s3.put_object(Bucket="bins", Key=key, Body=b"-")
    renewed: list[int] = []
    monkeypatch.setattr(Lease, "renew", lambda _: renewed.append(1))
    monkeypatch.setattr(spot.RunAttempt, "_train", lambda _: spot.Ending("shut down", "-"))
    site.work("succeeds")
    before_and_after = 4  # the pointer, the record, the fetching itself, the leaving
    assert len(renewed) == 3 + before_and_after


@pytest.mark.parametrize("purchase", ["on_demand", "spot"])
def test_the_dollars_of_a_run_are_those_of_its_machine(site: Site, purchase: Purchase) -> None:
    site.work("succeeds", instance_life_cycle=purchase.replace("_", "-"))
    flags = site.record.read("metrics.json")["options"]
    machine = load_prices().machine_hour("c7i.large", purchase).dollars
    disk_and_address = 0.0083
    assert float(flags["--dollars-an-hour"]) == pytest.approx(machine + disk_and_address, rel=0.02)


def test_a_fallback_that_cannot_be_put_off_is_no_reason_to_stop(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    refused = ClientError({"Error": {"Code": "AccessDenied"}}, "SetDesiredCapacity")
    site.monkeypatch.setattr(spot, "book_fallback", Mock(side_effect=refused))
    assert site.work("succeeds") == 0
    assert "a second machine may start" in caplog.text


def test_without_a_fallback_no_group_is_touched(site: Site) -> None:
    site.monkeypatch.setenv("GROUP_NAMES", "trainers")
    site.set_desired("reserve")
    site.work("succeeds")
    assert site.desired()["reserve"] == 1
    assert site.fallback() is None


def test_a_machine_without_a_price_loses_no_model(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    assert site.work("succeeds", instance_type="x9.huge") == 0
    assert site.model() == "s3://bins/runs/r1/model.tar.gz"
    cost = site.record.read("cost.json")
    assert cost["dollars"] is None
    assert "no spot price for 'x9.huge'" in cost["note"]
    with pytest.raises(SystemExit) as caught:
        costs(["compare", "--run-id", "r1", "--bucket", "bins"])
    error = capsys.readouterr().err
    assert caught.value.code == 1
    assert error.startswith("error: no spot price for 'x9.huge'")
    assert error.count("\n") == 1


def test_a_topic_that_refuses_does_not_undo_the_run(site: Site) -> None:
    site.monkeypatch.setenv("TOPIC_ARN", "arn:aws:sns:us-east-1:123456789012:gone")
    assert site.work("succeeds") == 0
    assert site.record.status()["state"] == "succeeded"
    assert current_run(site.s3, "bins") is None


def test_what_training_prints_is_in_the_log_of_its_run_and_machine(site: Site) -> None:
    site.work("succeeds")
    for handler in logging.getLogger("training").handlers:
        handler.flush()
    events = boto3.client("logs").filter_log_events(
        logGroupName="/training", logStreamNames=["r1/i-1"]
    )["events"]
    assert "train: epoch 1 of 1" in [event["message"] for event in events]


def test_progress_and_checkpoints_are_stored_while_training_runs(site: Site) -> None:
    site.monkeypatch.setattr(spot, "STORE_SECONDS", 0)
    seen: list[set[str]] = []

    def look() -> str | None:
        seen.append(site.keys() | site.keys("checkpoints/r1/"))
        stored = {"metrics.jsonl", "001/features.npy"} <= seen[-1]
        return "terminate" if stored else None

    assert site.work("checkpoint", on_look=look) == 75


def test_an_attempt_is_paid_for_from_the_boot_on(site: Site) -> None:
    site.monkeypatch.setenv("BOOT_STARTED", "2026-01-02T03:04:05Z")
    site.work("succeeds")
    assert site.record.status()["attempts"][0]["started"] == "2026-01-02T03:04:05Z"
    assert site.record.read("cost.json")["seconds"] > 1e6


def test_a_metadata_service_that_is_silent_at_first_is_waited_for(site: Site) -> None:
    made, clients = boto3.client, []

    def find(s3: Any, bucket: str) -> Any:
        clients.append(s3)
        if len(clients) == 1:
            raise NoCredentialsError
        return current_run(made("s3"), bucket)

    def learn(_: object) -> None:
        site.monkeypatch.setattr(machine, "fetch_identity", lambda _: None)
        raise HTTPError("HTTP 503")

    site.monkeypatch.setattr(upkeep, "PAUSE_SECONDS", 0)
    for module in (machine, spot):
        site.monkeypatch.setattr(module, "current_run", find)
    site.monkeypatch.setattr(machine, "fetch_identity", learn)
    assert site.work("succeeds") == 0
    assert clients[0] is not clients[1]


def test_without_an_active_run_there_is_nothing_to_do(site: Site) -> None:
    assert deactivate_run(site.s3, "bins", CurrentRun(run_id="r1", runtime="runtime/a/"))
    site.monkeypatch.setattr(machine, "instance_metadata", lambda: pytest.fail("not needed"))
    assert machine.work_on_active_run(site.folder) == 0


def test_the_boot_script_gets_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls = []

    def work_on_active_run(*arguments: Any) -> int:
        calls.append(arguments)
        return 75

    monkeypatch.setattr(machine, "work_on_active_run", work_on_active_run)
    monkeypatch.setattr(sys, "argv", ["spot", "--work", str(tmp_path)])
    with pytest.raises(SystemExit) as caught:
        machine.main()
    assert caught.value.code == 75
    assert calls == [(tmp_path,)]
