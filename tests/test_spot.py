"""A machine's attempt at a run, with a stand-in for the training process."""

import io
import json
import logging
import signal
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import psutil
import pytest
from botocore.exceptions import EndpointConnectionError

from costs.__main__ import main as costs
from training import control, spot
from training.control import LEASE, CurrentRun, Lease, current_run, end_run, start_run
from training.run_record import Request, RunRecord
from training.transfer import list_keys

# What training.train does as far as its machine can see; $TRAINING says how it ends.
TRAINER = """
import json, os, signal, sys
from pathlib import Path

flags = sys.argv[3:]
options = dict(zip(flags[::2], flags[1::2]))
output, checkpoints = Path(options["--output"]), Path(options["--checkpoint-dir"])
for folder in (output / "model", checkpoints):
    folder.mkdir(parents=True, exist_ok=True)
found = sorted(file.name for file in checkpoints.iterdir())
(checkpoints / "features.npy").write_text("features")
(output / "metrics.jsonl").write_text('{"epoch": 1}')
print("epoch 1 of 1", flush=True)

def give_up(*_):
    (output.parent / "overdue").touch()
    os._exit(1)

def leave(*_):
    (checkpoints / "snapshot-00001.pt").write_text("epoch 1")
    sys.exit(75)

def finish(*_):
    (output / "metrics.json").write_text(json.dumps({"found": found, "options": options}))
    (output / "loss.png").write_text("picture")
    (output / "model" / "model.onnx").write_text("graph")
    (output / "model" / "model.json").write_text("{}")
    sys.exit(0)

signal.signal(signal.SIGALRM, give_up)
signal.alarm(20)
ending = os.environ["TRAINING"]
if ending == "succeeds":
    finish()
if ending == "fails":
    sys.exit("error: no photo is left")
on_sigterm = {
    "snapshot": leave,
    "finishes": finish,
    "deaf": signal.SIG_IGN,
    "importing": signal.SIG_DFL,
}
signal.signal(signal.SIGTERM, on_sigterm[ending])
(output.parent / "pid").write_text(str(os.getpid()))
(output.parent / "pid").rename(output.parent / "ready")
while True:
    signal.pause()
"""


@dataclass
class FakeMetadata:
    """What a machine is told; `on_look` is called once training runs, at each look for a notice."""

    work: Path
    instance_id: str = "i-one"
    instance_type: str = "c7i.large"
    availability_zone: str = "us-east-1a"
    instance_life_cycle: str = "spot"
    on_look: Callable[[], object] = lambda: None  # anything returned is a notice
    looks: int = 0

    @property
    def spot_instance_action(self) -> object:
        self.looks += 1
        assert self.looks < 3000, "training never got ready, or never heard of the notice"
        return self.on_look() if (self.work / "ready").exists() else None


@dataclass
class Site:
    """A bucket with one active run, and a machine that finds it."""

    s3: Any
    queue: str
    folder: Path
    monkeypatch: pytest.MonkeyPatch
    machines: int = 0
    metadata: FakeMetadata = field(init=False)

    @property
    def record(self) -> RunRecord:
        return RunRecord(self.s3, "bins", "r1")

    def work(self, training: str, **told: Any) -> int:
        """Let a new machine work on the run; `training` is how the stand-in behaves."""
        self.machines += 1
        work = self.folder / f"machine-{self.machines}"
        work.mkdir()
        self.metadata = FakeMetadata(work, instance_id=f"i-{self.machines}", **told)
        self.monkeypatch.setattr(spot, "instance_metadata", lambda: self.metadata)
        self.monkeypatch.setenv("TRAINING", training)
        return spot.work_on_active_run(work, poll_seconds=0.01)

    def keys(self, prefix: str = "runs/r1/") -> set[str]:
        return {key.removeprefix(prefix) for key in list_keys(self.s3, "bins", prefix)}

    def outcomes(self) -> list[str]:
        return [attempt.get("outcome", "") for attempt in self.record.status()["attempts"]]

    def lease(self) -> Any:
        return json.loads(self.s3.get_object(Bucket="bins", Key=LEASE)["Body"].read())

    def model(self) -> str:
        value: str = boto3.client("ssm").get_parameter(Name="/model")["Parameter"]["Value"]
        return value

    def told(self) -> list[tuple[str, str]]:
        """Subject and text of what the alert topic sent since the last call."""
        sqs = boto3.client("sqs")
        messages = sqs.receive_message(QueueUrl=self.queue, MaxNumberOfMessages=10)
        bodies = [json.loads(message["Body"]) for message in messages.get("Messages", [])]
        return [(body["Subject"], body["Message"]) for body in bodies]

    def another_machine_takes_the_lease(self) -> None:
        content = json.dumps({"run_id": "r1", "holder": "i-other", "expires": 9e9})
        self.s3.put_object(Bucket="bins", Key=LEASE, Body=content.encode())


@pytest.fixture
def site(aws: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    (tmp_path / "train.py").write_text(TRAINER)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -ES "{tmp_path}/train.py" "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    on_sigterm = signal.getsignal(signal.SIGTERM)
    logger = logging.getLogger("training")
    level = logger.level
    logger.setLevel(logging.INFO)
    yield deploy(tmp_path, monkeypatch)
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.setLevel(level)
    signal.signal(signal.SIGTERM, on_sigterm)
    assert not list(tmp_path.glob("*/overdue")), "training was not ended"


def deploy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """What DataStack and TrainStack leave, and a requested run."""
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket="bins")
    s3.put_object(Bucket="bins", Key="datasets/photos/manifest.json", Body=b"{}")
    s3.put_object(Bucket="bins", Key="weights/resnet50.pth", Body=b"tensors")
    boto3.client("ssm").put_parameter(Name="/model", Value="none", Type="String")
    boto3.client("logs").create_log_group(logGroupName="/training")
    sns, sqs = boto3.client("sns"), boto3.client("sqs")
    topic = sns.create_topic(Name="alerts")["TopicArn"]
    queue = sqs.create_queue(QueueName="alerts")["QueueUrl"]
    sns.subscribe(
        TopicArn=topic, Protocol="sqs", Endpoint="arn:aws:sqs:us-east-1:123456789012:alerts"
    )
    for name, value in {
        "BUCKET": "bins",
        "MODEL_PARAMETER": "/model",
        "TOPIC_ARN": topic,
        "LOG_GROUP": "/training",
        "VOLUME_GIB": "30",
    }.items():
        monkeypatch.setenv(name, value)
    site = Site(s3=s3, queue=queue, folder=folder, monkeypatch=monkeypatch)
    request(site, deadline="2099-01-01T00:00:00+00:00")
    site.record.set_status("requested", "", [])
    start_run(s3, "bins", CurrentRun(run_id="r1", runtime="runtime/a/"))
    return site


def request(site: Site, deadline: str) -> None:
    content = Request(
        run_id="r1",
        dataset="photos",
        arch="resnet50",
        train_arguments=["--epochs", "7"],
        deadline=deadline,
        estimate={},
    )
    site.record.write("request.json", content)


def test_a_run_that_succeeds_leaves_a_model_and_tells(site: Site) -> None:
    assert site.work("succeeds") == 0
    uri = "s3://bins/runs/r1/model.tar.gz"
    results = {"metrics.jsonl", "metrics.json", "loss.png", "cost.json", "model.tar.gz"}
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
    assert (cost["instance_type"], cost["purchase"]) == ("c7i.large", "spot")
    assert 0 < cost["dollars"] < 0.01
    assert cost["dollars"] == pytest.approx(sum(line["dollars"] for line in cost["lines"]))


def test_an_on_demand_machine_is_not_counted_as_spot(site: Site) -> None:
    site.work("succeeds", instance_life_cycle="on-demand")
    cost = site.record.read("cost.json")
    assert cost["purchase"] == "on_demand"
    assert cost["lines"][0]["name"] == "c7i.large, on-demand"


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
        return "terminate" if len(seen) == 2 else None

    site.work("snapshot", on_look=look)
    assert {"metrics.jsonl", "001/features.npy"} <= seen[1]


def test_a_notice_ends_the_attempt_with_a_snapshot_in_the_bucket(site: Site) -> None:
    assert site.work("snapshot", on_look=lambda: "terminate") == 75
    assert site.keys("checkpoints/r1/") == {"001/features.npy", "001/snapshot-00001.pt"}
    assert site.record.status()["state"] == "interrupted"
    assert site.outcomes() == ["interrupted"]
    assert site.lease()["expires"] == 0
    assert current_run(site.s3, "bins") is not None
    assert site.told() == []


def test_sigterm_does_the_same_as_a_notice(site: Site) -> None:
    assert site.work("snapshot", on_look=lambda: signal.raise_signal(signal.SIGTERM)) == 75
    assert "001/snapshot-00001.pt" in site.keys("checkpoints/r1/")
    assert site.outcomes() == ["interrupted"]
    assert site.lease()["expires"] == 0


def test_the_next_machine_goes_on_from_the_snapshot(site: Site) -> None:
    site.work("snapshot", on_look=lambda: "terminate")
    assert site.work("succeeds") == 0
    assert site.record.read("metrics.json")["found"] == ["features.npy", "snapshot-00001.pt"]
    assert site.outcomes() == ["interrupted", "succeeded"]
    assert "002/features.npy" in site.keys("checkpoints/r1/")


def test_training_that_finishes_as_the_notice_comes_has_succeeded(site: Site) -> None:
    assert site.work("finishes", on_look=lambda: "terminate") == 0
    assert site.record.status()["state"] == "succeeded"


@pytest.mark.parametrize("training", ["importing", "deaf"])
def test_training_that_takes_no_snapshot_was_interrupted_too(site: Site, training: str) -> None:
    if training == "deaf":
        site.monkeypatch.setattr(spot, "STOP_SECONDS", 0.1)
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

    assert site.work("snapshot", on_look=look) == 75
    assert not psutil.pid_exists(int((site.folder / "machine-1" / "ready").read_text()))
    assert before == [(site.record.status(), site.keys(""))]
    assert site.lease()["holder"] == "i-other"
    assert site.model() == "none"


def test_who_lost_the_lease_over_its_snapshot_leaves_the_status_to_the_other(site: Site) -> None:
    site.monkeypatch.setattr(control, "RENEW_SECONDS", 0)

    def look() -> str:
        site.another_machine_takes_the_lease()
        return "terminate"

    assert site.work("snapshot", on_look=look) == 75
    assert site.record.status()["state"] == "running"
    assert site.outcomes() == [""]
    assert "001/snapshot-00001.pt" in site.keys("checkpoints/r1/")


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
    for training in ("fails", "snapshot", "fails", "snapshot", "snapshot"):
        assert site.work(training, on_look=lambda: "terminate") == 75
    assert site.work("fails") == 0
    assert site.outcomes().count("failed") == 3


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

    assert site.work("snapshot", on_look=look) == 0
    assert site.record.status()["state"] == "failed"
    assert "not done at the deadline" in site.record.status()["message"]
    assert "001/snapshot-00001.pt" in site.keys("checkpoints/r1/")
    assert [subject for subject, _ in site.told()] == ["Training run r1 failed"]
    assert current_run(site.s3, "bins") is None


@pytest.mark.parametrize(
    "error", [EndpointConnectionError(endpoint_url="https://s3"), OSError("No space left")]
)
def test_an_attempt_that_cannot_reach_its_data_is_tried_three_times(
    site: Site, error: Exception
) -> None:
    def broken(*_: object) -> int:
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
        raise EndpointConnectionError(endpoint_url="https://s3")

    site.monkeypatch.setattr(RunRecord, "status", broken)
    with pytest.raises(EndpointConnectionError):
        site.work("succeeds")
    assert site.record.read("status.json") == before


def test_an_attempt_is_paid_for_from_the_boot_on(site: Site) -> None:
    site.monkeypatch.setenv("BOOT_STARTED", "2026-01-02T03:04:05Z")
    site.work("succeeds")
    assert site.record.status()["attempts"][0]["started"] == "2026-01-02T03:04:05Z"
    assert site.record.read("cost.json")["seconds"] > 1e6


def test_a_run_that_ends_while_a_machine_waits_is_not_run_again(site: Site) -> None:
    first = Lease(site.s3, "bins", run_id="r1", holder="i-other")
    first.acquire()

    def the_first_machine_finishes(_: float) -> None:
        site.record.set_status("succeeded", "", [])
        end_run(site.s3, "bins")
        first.release()

    clock = SimpleNamespace(
        time=time.time, monotonic=time.monotonic, sleep=the_first_machine_finishes
    )
    site.monkeypatch.setattr(control, "time", clock)
    assert site.work("succeeds") == 75
    assert site.record.status()["state"] == "succeeded"
    assert site.outcomes() == []
    assert site.lease()["expires"] == 0


def test_without_an_active_run_there_is_nothing_to_do(site: Site) -> None:
    end_run(site.s3, "bins")
    site.monkeypatch.setattr(spot, "instance_metadata", lambda: pytest.fail("not needed"))
    assert spot.work_on_active_run(site.folder, poll_seconds=0.01) == 0


def test_the_boot_script_gets_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls = []

    def work_on_active_run(*arguments: Any) -> int:
        calls.append(arguments)
        return 75

    monkeypatch.setattr(spot, "work_on_active_run", work_on_active_run)
    monkeypatch.setattr(sys, "argv", ["spot", "--work", str(tmp_path)])
    monkeypatch.setenv("SPOT_POLL_SECONDS", "0.5")
    with pytest.raises(SystemExit) as caught:
        spot.main()
    assert caught.value.code == 75
    assert calls == [(tmp_path, 0.5)]
