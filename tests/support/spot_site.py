"""A bucket with one requested run, and machines that work on it with a stand-in for training."""

import json
import logging
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import pytest

from common.run_record import VERSION, Request, RunRecord
from common.storage import list_keys
from training.machine import __main__ as machine
from training.machine import attempt as spot
from training.runs.active_run import (
    LEASE,
    CurrentRun,
    activate_run,
)
from training.runs.fallback import FALLBACK

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
    (checkpoints / "checkpoint-00001.pt").write_text("epoch 1")
    sys.exit(75)

def finish(*_):
    (output / "metrics.json").write_text(json.dumps({"found": found, "options": options}))
    for name in ("loss.png", "report.html", "weights.pth"):
        (output / name).write_text("content")
    (output / "events").mkdir()
    (output / "events" / "events.out.tfevents.1").write_text("losses")
    (output / "model" / "model.onnx").write_text("graph")
    (output / "model" / "model.json").write_text("{}")
    sys.exit(0)

def count(*_):
    with (output.parent / "asked").open("a") as file:
        file.write("x")

signal.signal(signal.SIGALRM, give_up)
signal.alarm(600)
ending = os.environ["TRAINING"]
if ending == "succeeds":
    finish()
if ending == "fails":
    sys.exit("error: no photo is left")
on_sigterm = {
    "checkpoint": leave,
    "finishes": finish,
    "deaf": signal.SIG_IGN,
    "importing": signal.SIG_DFL,
    "counts": leave,
}
signal.signal(signal.SIGTERM, on_sigterm[ending])
if ending == "counts":
    signal.signal(signal.SIGUSR1, count)
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
    rebalance_recommendation: str | None = None
    on_look: Callable[[], object] = lambda: None  # anything returned is a notice
    looks: int = 0

    @property
    def spot_instance_action(self) -> object:
        self.looks += 1
        assert self.looks < 60_000, "training never got ready, or never heard of the notice"
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
        self.monkeypatch.setattr(machine, "instance_metadata", lambda: self.metadata)
        self.monkeypatch.setenv("TRAINING", training)
        return machine.work_on_active_run(work)

    def keys(self, prefix: str = "runs/r1/") -> set[str]:
        return {key.removeprefix(prefix) for key in list_keys(self.s3, "bins", prefix)}

    def outcomes(self) -> list[str]:
        return [attempt.get("outcome", "") for attempt in self.record.status()["attempts"]]

    def desired(self) -> dict[str, int]:
        """Of each group."""
        groups = boto3.client("autoscaling").describe_auto_scaling_groups()["AutoScalingGroups"]
        return {group["AutoScalingGroupName"]: group["DesiredCapacity"] for group in groups}

    def set_desired(self, group: str) -> None:
        boto3.client("autoscaling").set_desired_capacity(
            AutoScalingGroupName=group, DesiredCapacity=1
        )

    def fallback(self) -> Any:
        """What is booked for the group of on-demand machines, if anything is."""
        found = self.booked("reserve")
        return next((each for each in found if each["ScheduledActionName"] == FALLBACK), None)

    def booked(self, group: str) -> Any:
        autoscaling = boto3.client("autoscaling")
        booked = autoscaling.describe_scheduled_actions(AutoScalingGroupName=group)
        return booked["ScheduledUpdateGroupActions"]

    def lease(self) -> Any:
        return json.loads(self.s3.get_object(Bucket="bins", Key=LEASE)["Body"].read())

    def model(self) -> str:
        value: str = boto3.client("ssm").get_parameter(Name="/model")["Parameter"]["Value"]
        return value

    def told(self) -> list[tuple[str, str]]:
        """Subject and first line of what the alert topic sent since the last call."""
        sqs = boto3.client("sqs")
        messages = sqs.receive_message(QueueUrl=self.queue, MaxNumberOfMessages=10)
        bodies = [json.loads(message["Body"]) for message in messages.get("Messages", [])]
        return [(body["Subject"], body["Message"].splitlines()[0]) for body in bodies]

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
    monkeypatch.setattr(spot, "POLL_SECONDS", 0.01)
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
        "GROUP_NAMES": "trainers reserve",
    }.items():
        monkeypatch.setenv(name, value)
    for group in ("trainers", "reserve"):
        create_group(group)
    site = Site(s3=s3, queue=queue, folder=folder, monkeypatch=monkeypatch)
    request(site)
    site.record.set_status("requested", "", [])
    activate_run(s3, "bins", CurrentRun(run_id="r1", runtime="runtime/a/"))
    return site


def create_group(name: str) -> None:
    data: Any = {"ImageId": "ami-12c6146b", "InstanceType": "c7i.large"}
    boto3.client("ec2").create_launch_template(LaunchTemplateName=name, LaunchTemplateData=data)
    boto3.client("autoscaling").create_auto_scaling_group(
        AutoScalingGroupName=name,
        MinSize=0,
        MaxSize=1,
        AvailabilityZones=["us-east-1a"],
        LaunchTemplate={"LaunchTemplateName": name, "Version": "1"},
    )


def request(
    site: Site,
    *,
    deadline: str = "2099-01-01T00:00:00+00:00",
    earlier: int = 0,
    fallback_minutes: float = 20,
) -> None:
    content = Request(
        run_id="r1",
        dataset="photos",
        arch="resnet50",
        train_arguments=["--epochs", "7"],
        deadline=deadline,
        estimate={"seconds": 600, "dollars": 0.01, "basis": "guessed"},
        mode="head",
        ensemble_size=1,
        version=VERSION,
        epochs=7,
        chunks=0,
        runtime="runtime/a/",
        earlier_attempts=earlier,
        fallback_minutes=fallback_minutes,
    )
    site.record.write("request.json", content)
