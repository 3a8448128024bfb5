"""What a user is told before a run starts, and that nothing starts without its booked end."""

import io
import json
import os
import subprocess
import sys
import tarfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.client import BaseClient
from botocore.exceptions import ClientError

from training import launch
from training.control import CurrentRun, current_run, start_run
from training.run_record import Attempt, RunRecord
from training.transfer import list_keys

GROUP = "trainers"
ROLE = "arn:aws:iam::123456789012:role/launcher"
ACTIVE = CurrentRun(run_id="earlier", runtime="runtime/a/")


class Account:
    """An account with both stacks deployed; sees each call to AWS, and answers some itself."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []  # operation, access key
        self.answers: dict[str, Any] = {}  # by operation; an exception is raised

    @property
    def s3(self) -> Any:
        return boto3.client("s3")

    def desired(self) -> int:
        groups = boto3.client("autoscaling").describe_auto_scaling_groups()
        (group,) = groups["AutoScalingGroups"]
        desired: int = group["DesiredCapacity"]
        return desired

    def booking(self) -> Any:
        actions = boto3.client("autoscaling").describe_scheduled_actions(AutoScalingGroupName=GROUP)
        (action,) = actions["ScheduledUpdateGroupActions"]
        return action

    def record(self) -> RunRecord:
        """The record of the one run that was requested."""
        keys = list_keys(self.s3, "bins", "runs/")
        (run_id,) = {key.split("/")[1] for key in keys} - {"earlier"}
        return RunRecord(self.s3, "bins", run_id)

    def order(self, *operations: str) -> list[str]:
        return [operation for operation, _ in self.calls if operation in operations]

    def nothing_started(self) -> bool:
        return self.desired() == 0 and current_run(self.s3, "bins") is None


@pytest.fixture
def account(aws: None, monkeypatch: pytest.MonkeyPatch) -> Account:
    deploy()
    account = Account()
    call_aws = BaseClient._make_api_call  # type: ignore[attr-defined]

    def noted(client: Any, operation: str, parameters: Any) -> Any:
        key = client._request_signer._credentials.access_key
        account.calls.append((operation, key))
        answer = account.answers.get(operation)
        if isinstance(answer, BaseException):
            raise answer
        return call_aws(client, operation, parameters) if answer is None else answer

    monkeypatch.setattr(BaseClient, "_make_api_call", noted)
    return account


def deploy() -> None:
    """What DataStack, TrainStack, data_prep and training.runtime leave."""
    cloudformation = boto3.client("cloudformation")
    for stack, outputs in {
        "DataStack": {"BucketName": "bins"},
        "TrainStack": {"LauncherRoleArn": ROLE, "GroupName": GROUP},
    }.items():
        template = {
            "Resources": {"Any": {"Type": "AWS::SNS::Topic"}},
            "Outputs": {name: {"Value": value} for name, value in outputs.items()},
        }
        cloudformation.create_stack(StackName=stack, TemplateBody=json.dumps(template))
    ec2 = boto3.client("ec2")
    data: Any = {"ImageId": "ami-12c6146b", "InstanceType": "c7i.large"}
    ec2.create_launch_template(LaunchTemplateName="machine", LaunchTemplateData=data)
    boto3.client("autoscaling").create_auto_scaling_group(
        AutoScalingGroupName=GROUP,
        MinSize=0,
        MaxSize=1,
        AvailabilityZones=["us-east-1a"],
        MixedInstancesPolicy={
            "LaunchTemplate": {
                "LaunchTemplateSpecification": {"LaunchTemplateName": "machine", "Version": "1"},
                "Overrides": [{"InstanceType": "m7i.large"}, {"InstanceType": "c7i.large"}],
            },
            "InstancesDistribution": {"OnDemandPercentageAboveBaseCapacity": 0},
        },
    )
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket="bins")
    manifest = {"photos": {"train": {"1": 4000, "2": 3000}, "test": {"1": 1000}}}
    s3.put_object(
        Bucket="bins", Key="datasets/photos/manifest.json", Body=json.dumps(manifest).encode()
    )
    s3.put_object(Bucket="bins", Key="weights/resnet50.pth", Body=b"tensors")
    s3.put_object(Bucket="bins", Key="runtime/a/requirements.txt", Body=b"")


def start(*flags: str) -> str:
    return launch.launch(launch.parse_arguments(["--dataset", "photos", "--yes", *flags]))


def command(monkeypatch: pytest.MonkeyPatch, *flags: str) -> str:
    """Run the command, which is to fail; returns what it says to the user."""
    monkeypatch.setattr(sys, "argv", ["launch", "--dataset", "photos", *flags])
    with pytest.raises(SystemExit) as caught:
        launch.main()
    message = str(caught.value.code)
    assert message.strip().count("\n") == 0
    return message.strip()


def answer(monkeypatch: pytest.MonkeyPatch, reply: str | BaseException) -> None:
    """What the user types at the question."""

    def fake_input(question: str) -> str:
        assert question.endswith("[y/N] ")
        if isinstance(reply, BaseException):
            raise reply
        return reply

    monkeypatch.setattr("builtins.input", fake_input)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("datasets/photos/manifest.json", "run `python -m data_prep all --name photos`"),
        ("weights/resnet50.pth", "run `python -m data_prep weights --arch resnet50`"),
        ("runtime/a/requirements.txt", "run `python -m training.runtime`"),
    ],
)
def test_what_is_missing_is_named_with_the_command_that_makes_it(
    account: Account, monkeypatch: pytest.MonkeyPatch, key: str, message: str
) -> None:
    account.s3.delete_object(Bucket="bins", Key=key)
    assert message in command(monkeypatch, "--yes")
    assert account.nothing_started()
    assert list_keys(account.s3, "bins", "runs/") == []


def test_wheels_that_are_still_being_uploaded_do_not_count(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    account.s3.delete_object(Bucket="bins", Key="runtime/a/requirements.txt")
    account.s3.put_object(Bucket="bins", Key="runtime/b/torch.whl", Body=b"")
    assert "training.runtime" in command(monkeypatch, "--yes")


def test_a_stack_that_is_not_deployed_is_one_line(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    boto3.client("cloudformation").delete_stack(StackName="TrainStack")
    assert command(monkeypatch) == (
        "error: TrainStack is not deployed here: run `cdk deploy TrainStack`"
    )


def test_a_refusal_of_aws_is_one_line(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    refusal: Any = {"Error": {"Code": "AccessDenied", "Message": "not yours"}}
    account.answers["AssumeRole"] = ClientError(refusal, "AssumeRole")
    assert command(monkeypatch).startswith("error: AWS: An error occurred (AccessDenied)")


def test_time_and_cost_are_stated_before_the_question(
    account: Account, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stated: list[str] = []

    def fake_input(question: str) -> str:
        stated.append(capsys.readouterr().out)
        return "y"

    monkeypatch.setattr("builtins.input", fake_input)
    launch.launch(launch.parse_arguments(["--dataset", "photos", "--max-hours", "2"]))
    assert "about 9 minutes and $0.0" in stated[0]
    assert "on a m7i.large, spot" in stated[0]
    assert "ended by force after 2 hours" in stated[0]
    assert "8,000 photos" in stated[0]
    assert account.desired() == 1


@pytest.mark.parametrize("reply", ["n", "", "maybe", EOFError(), KeyboardInterrupt()])
def test_anything_but_yes_starts_nothing(
    account: Account, monkeypatch: pytest.MonkeyPatch, reply: str | BaseException
) -> None:
    answer(monkeypatch, reply)
    assert command(monkeypatch) == "error: not started"
    assert account.nothing_started()
    assert list_keys(account.s3, "bins", "runs/") == []


def test_the_end_is_booked_before_anything_can_spend(account: Account) -> None:
    before = datetime.now(UTC)
    start("--max-hours", "2")
    assert account.order("PutScheduledUpdateGroupAction", "SetDesiredCapacity") == [
        "PutScheduledUpdateGroupAction",
        "SetDesiredCapacity",
    ]
    booking = account.booking()
    assert (booking["MinSize"], booking["DesiredCapacity"]) == (0, 0)
    deadline = datetime.fromisoformat(account.record().request()["deadline"])
    assert abs(deadline - before - timedelta(hours=2)) < timedelta(minutes=1)
    assert abs(booking["StartTime"] - deadline) <= timedelta(seconds=1)
    assert account.desired() == 1


def test_a_second_run_books_anew_instead_of_beside(account: Account) -> None:
    start("--max-hours", "2")
    autoscaling = boto3.client("autoscaling")
    autoscaling.set_desired_capacity(AutoScalingGroupName=GROUP, DesiredCapacity=0)
    start("--max-hours", "5")
    assert account.booking()["StartTime"] > datetime.now(UTC) + timedelta(hours=4)


def test_without_a_booking_that_can_be_read_back_nothing_starts(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    account.answers["DescribeScheduledActions"] = {"ScheduledUpdateGroupActions": []}
    assert "could not be booked, nothing started" in command(monkeypatch, "--yes")
    assert account.order("SetDesiredCapacity") == []
    assert account.nothing_started()
    assert account.record().status()["state"] == "failed"


@pytest.mark.parametrize("operation", ["PutScheduledUpdateGroupAction", "SetDesiredCapacity"])
def test_a_start_that_breaks_off_does_not_block_the_next(account: Account, operation: str) -> None:
    account.answers[operation] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        start()
    assert account.nothing_started()
    account.answers.clear()
    start()
    assert account.desired() == 1


def test_zones_are_not_evened_out_while_a_machine_works(account: Account) -> None:
    start()
    (group,) = boto3.client("autoscaling").describe_auto_scaling_groups()["AutoScalingGroups"]
    suspended = [process["ProcessName"] for process in group["SuspendedProcesses"]]
    assert suspended == ["AZRebalance"]


def test_a_run_at_work_is_not_disturbed(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    first = start()
    booking = account.booking()
    assert command(monkeypatch, "--yes", "--max-hours", "9") == (
        f"error: {GROUP} is at work on run {first}: wait for its end"
    )
    assert account.booking() == booking
    assert current_run(account.s3, "bins") == {"run_id": first, "runtime": "runtime/a/"}


@pytest.mark.parametrize(
    ("state", "closed"),
    [("running", "failed"), ("interrupted", "failed"), ("succeeded", "succeeded")],
)
def test_a_run_that_ended_without_a_word_is_closed_and_the_new_one_starts(
    account: Account, state: Any, closed: str
) -> None:
    attempt = Attempt(
        instance_id="i-1", instance_type="c7i.large", zone="us-east-1a", started="2026-11-23"
    )
    ended = RunRecord(account.s3, "bins", "earlier")
    ended.set_status(state, "", [attempt])
    start_run(account.s3, "bins", ACTIVE)
    run_id = start()
    assert ended.status()["state"] == closed
    assert ended.status()["attempts"] == [attempt]
    active = current_run(account.s3, "bins")
    assert active is not None
    assert active["run_id"] == run_id
    assert account.desired() == 1


def test_the_machine_finds_everything_that_was_asked_for(account: Account) -> None:
    account.s3.put_object(Bucket="bins", Key="weights/efficientnet_lite0.pth", Body=b"tensors")
    start("--arch", "efficientnet_lite0", "--", "--epochs", "60")
    record = account.record()
    request = record.request()
    assert (request["run_id"], request["dataset"]) == (record.run_id, "photos")
    assert request["arch"] == "efficientnet_lite0"
    assert request["train_arguments"] == ["--epochs", "60"]
    assert "60 epochs" in request["estimate"]["basis"]
    assert record.status()["state"] == "requested"
    assert current_run(account.s3, "bins") == {"run_id": record.run_id, "runtime": "runtime/a/"}


def test_the_launcher_s_role_makes_every_call_but_the_look_at_the_stacks(account: Account) -> None:
    start()
    as_user = {"DescribeStacks", "AssumeRole"}
    keys = {key for operation, key in account.calls if operation not in as_user}
    users = {key for operation, key in account.calls if operation in as_user}
    assert len(keys) == 1
    assert keys.isdisjoint(users)
    (key,) = keys
    assert key.startswith("ASIA"), "a temporary key, from sts"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--", "--epochs", "zero"], "--epochs"),
        (["--", "--epochs", "0"], "--epochs"),
        (["--", "--epoks", "9"], "--epoks"),
        (["--", "--arch", "efficientnet_lite0"], "--arch is set by the machine, not after --"),
        (["--", "--data", "elsewhere"], "--data is set by the machine"),
        (["--", "--checkpoint-dir", "/tmp"], "--checkpoint-dir is set by the machine"),
        (["--max-hours", "0"], "--max-hours must be above 0, at most 168"),
        (["--max-hours", "nan"], "--max-hours must be above 0, at most 168"),
        (["--max-hours", "1000"], "--max-hours must be above 0, at most 168"),
    ],
)
def test_flags_that_training_would_refuse_are_refused_at_launch(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        launch.parse_arguments(["--dataset", "photos", *flags])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_group_of_on_demand_machines_is_priced_as_such(
    account: Account, capsys: pytest.CaptureFixture[str]
) -> None:
    group = boto3.client("autoscaling")
    (described,) = group.describe_auto_scaling_groups()["AutoScalingGroups"]
    policy: Any = described["MixedInstancesPolicy"]
    policy["InstancesDistribution"]["OnDemandPercentageAboveBaseCapacity"] = 100
    account.answers["DescribeAutoScalingGroups"] = {"AutoScalingGroups": [described]}
    start()
    assert "on a m7i.large, on-demand" in capsys.readouterr().out


@pytest.fixture
def code(account: Account, tmp_path: Path) -> Path:
    """The folder where the boot script unpacks code.tar.gz."""
    start()
    record = account.record()
    archive = account.s3.get_object(Bucket="bins", Key=record.key("code.tar.gz"))["Body"].read()
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(tmp_path / "code", filter="data")
    return tmp_path / "code"


def test_the_code_is_all_that_a_machine_runs_and_nothing_else(code: Path) -> None:
    files = {file.relative_to(code).as_posix() for file in code.rglob("*") if file.is_file()}
    assert {"training/spot.py", "serving/preprocess.py", "costs/prices.json"} <= files
    assert {name.partition("/")[0] for name in files} == {"training", "serving", "costs"}
    assert {Path(name).suffix for name in files} == {".py", ".json"}


def test_the_code_runs_without_the_checkout(code: Path, tmp_path: Path) -> None:
    script = "import costs, training.spot, training.train; print(training.spot.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(code)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(code / "training" / "spot.py")
