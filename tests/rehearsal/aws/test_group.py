"""What the rehearsal does in the name of EC2 Auto Scaling, on tiny machines."""

import base64
import json
import os
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import boto3
import psutil
import pytest
from moto.server import ThreadedMotoServer

from rehearsal.aws import group as module
from rehearsal.aws.group import RehearsedGroups, StillRunningError
from rehearsal.aws.processes import Processes

GROUP = "trainer"
TO_ZERO = f"aws autoscaling set-desired-capacity --auto-scaling-group-name {GROUP}"
TO_ZERO += " --desired-capacity 0; shutdown -h now"
# The first request gets no answer.
TOKEN = (
    "until token=$(curl -sf -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60'"
    " $AWS_EC2_METADATA_SERVICE_ENDPOINT/latest/api/token); do :; done"
)


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(module, "NOTICE_SECONDS", 1.0)
    monkeypatch.setattr(module, "SETTLE_SECONDS", 1.0)
    monkeypatch.setattr(module, "GRACE_SECONDS", 1.0)
    yield url
    server.stop()


def deploy(user_data: str) -> None:
    """A group at 1 whose machines run `user_data`."""
    iam = boto3.client("iam")
    name = f"role-{len(iam.list_roles()['Roles'])}"
    iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps({"Statement": []}))
    profile = iam.create_instance_profile(InstanceProfileName=name)["InstanceProfile"]
    iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
    ec2 = boto3.client("ec2")
    header = (
        "export AWS_DEFAULT_REGION=us-east-1 AWS_METADATA_SERVICE_NUM_ATTEMPTS=5"
        " AWS_METADATA_SERVICE_TIMEOUT=5\n"
    )
    template = ec2.create_launch_template(
        LaunchTemplateName=name,
        LaunchTemplateData={
            "ImageId": "ami-12c6146b",
            "InstanceType": "c7i.large",
            "IamInstanceProfile": {"Arn": profile["Arn"]},
            "UserData": base64.b64encode((header + user_data).encode()).decode(),
        },
    )["LaunchTemplate"]
    chosen = {"LaunchTemplateId": template["LaunchTemplateId"], "Version": "1"}
    boto3.client("autoscaling").create_auto_scaling_group(
        AutoScalingGroupName=GROUP,
        MinSize=0,
        MaxSize=1,
        DesiredCapacity=1,
        AvailabilityZones=["us-east-1a"],
        MixedInstancesPolicy={"LaunchTemplate": {"LaunchTemplateSpecification": chosen}},
    )


def run(
    endpoint: str,
    folder: Path,
    *interruptions: str,
    say: Callable[[str], None] = lambda _: None,
) -> RehearsedGroups:
    with Processes(folder / "state") as processes:
        group = RehearsedGroups(
            processes=processes,
            endpoint=endpoint,
            groups=[GROUP],
            folder=folder / "machines",
            say=say,
        )
        group.run(interruptions=list(interruptions))
    return group


def running_in(folder: Path) -> list[int]:
    """Processes that work in `folder`."""
    return [it.pid for it in psutil.process_iter(["cwd"]) if it.info["cwd"] == str(folder)]


def test_a_machine_that_sets_the_group_to_0_is_the_last(endpoint: str, tmp_path: Path) -> None:
    deploy(f"echo at work; {TO_ZERO}")
    group = run(endpoint, tmp_path)
    (machine,) = group.machines.values()
    assert "at work" in machine.console.read_text()
    assert group.states() == {"desired": 0, "instances": 0}


def test_a_machine_that_only_powers_off_is_replaced(endpoint: str, tmp_path: Path) -> None:
    second = tmp_path / "second"
    deploy(f"if [ -e {second} ]; then {TO_ZERO}; fi; touch {second}; shutdown -h now")
    group = run(endpoint, tmp_path)
    assert len(group.machines) == 2
    assert group.states() == {"desired": 0, "instances": 0}


def test_an_interrupted_machine_dies_and_is_replaced(endpoint: str, tmp_path: Path) -> None:
    # The first never leaves by itself; the second finds that it was there.
    script = (
        f"if [ -e {tmp_path}/first ]; then {TO_ZERO}; exit; fi; touch {tmp_path}/first\n"
        "mkdir -p $WORK/output; echo '{}' > $WORK/output/metrics.jsonl\n"
        f"{TOKEN}\n"
        'while :; do curl -s -H "X-aws-ec2-metadata-token: $token"'
        " $AWS_EC2_METADATA_SERVICE_ENDPOINT/latest/meta-data/spot/instance-action; done"
    )
    deploy(script)
    group = run(endpoint, tmp_path, "epoch:1")
    first, second = group.machines.values()
    assert re.search(r'"action": "terminate"', first.console.read_text())
    assert first.process.poll() is not None
    assert second.powered_off


def test_training_waits_where_it_is_interrupted_however_seldom_the_group_looks(
    endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_SECONDS", 1.0)
    epochs = 100  # in half a second
    training = (
        "import time\n"
        f"for _ in range({epochs}):\n"
        "    print('{}', file=open('opt/bin-counter/output/metrics.jsonl', 'a'))\n"
        "    time.sleep(0.005)"
    )
    deploy(
        f"if [ -e {tmp_path}/first ]; then {TO_ZERO}; exit; fi; touch {tmp_path}/first\n"
        f'mkdir -p $WORK/output; python3 -c "{training}" training.train &\n'
        f"{TOKEN}\n"
        'until curl -sf -H "X-aws-ec2-metadata-token: $token"'
        " $AWS_EC2_METADATA_SERVICE_ENDPOINT/latest/meta-data/spot/instance-action; do :; done\n"
        "wc -l < $WORK/output/metrics.jsonl > $WORK/at-notice; shutdown -h now"
    )
    first, _ = run(endpoint, tmp_path, "epoch:2").machines.values()
    assert 2 <= int((first.work / "at-notice").read_text()) < epochs


def test_a_booked_action_is_carried_out_when_it_is_due(endpoint: str, tmp_path: Path) -> None:
    deploy("sleep 600")
    due: list[datetime] = []

    def book(said: str) -> None:
        if said.endswith("boots"):
            due.append((datetime.now(UTC) + timedelta(seconds=2)).replace(microsecond=0))
            boto3.client("autoscaling").put_scheduled_update_group_action(
                AutoScalingGroupName=GROUP,
                ScheduledActionName="end",
                StartTime=due[0],
                MinSize=0,
                DesiredCapacity=0,
            )
        if said == "scheduled action end carried out":
            assert datetime.now(UTC) >= due[0]

    group = run(endpoint, tmp_path, say=book)
    (machine,) = group.machines.values()
    assert machine.process.poll() is not None
    assert group.states() == {"desired": 0, "instances": 0}


def test_a_group_whose_machines_fall_silent_is_ended_with_them(
    endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "QUIET_SECONDS", 1.0)
    deploy("for second in 1 2 3 4; do echo at work; sleep 0.5; done; touch done; sleep 600")
    with pytest.raises(StillRunningError, match="no machine has printed anything for 1 s"):
        run(endpoint, tmp_path)
    (machine,) = (tmp_path / "machines").iterdir()
    assert (machine / "done").exists(), "it was waited for as long as it said something"
    assert not running_in(machine)
