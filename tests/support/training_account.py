"""A mocked account with the stacks deployed, a data set, weights and wheels; for tests of what
`training.launch` does there."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any

import boto3
import pytest
from botocore.client import BaseClient

from common.run_record import VERSION, Attempt, Request, RunRecord, State
from common.storage import list_keys
from training.launch import app
from training.launcher import follow, logs, stop
from training.runs.active_run import CurrentRun, activate_run, current_run, deactivate_run

GROUP, ON_DEMAND = "trainers", "reserve"
ROLE = "arn:aws:iam::123456789012:role/launcher"
TOPIC = "arn:aws:sns:us-east-1:123456789012:alerts"
EARLIER = CurrentRun(run_id="20260101-000000-resnet50-aaaa", runtime="runtime/a/", launch="1")
TYPES = ["c7i-flex.large", "m7i-flex.large"]


class Account:
    """Sees each call to AWS, and answers some itself."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []  # operation, access key
        # By operation: an answer, a function of the parameters, or an exception to be raised.
        self.answers: dict[str, Any] = {
            "GetServiceQuota": quota({}),
            "ListSubscriptionsByTopic": subscriptions(f"{TOPIC}:1"),
            "GetAccountPlanState": {"accountPlanType": "PAID", "accountPlanStatus": "ACTIVE"},
        }
        self.before: Callable[[str], None] = lambda operation: None  # each call

    @cached_property
    def s3(self) -> Any:
        return boto3.client("s3")

    @cached_property
    def autoscaling(self) -> Any:
        return boto3.client("autoscaling")

    def desired(self) -> int:
        (group,) = self.autoscaling.describe_auto_scaling_groups()["AutoScalingGroups"]
        desired: int = group["DesiredCapacity"]
        return desired

    def set_desired(self, machines: int) -> None:
        self.autoscaling.set_desired_capacity(AutoScalingGroupName=GROUP, DesiredCapacity=machines)

    def add_fallback(self) -> None:
        """As purchase=spot_first deploys it."""
        create_group(ON_DEMAND, on_demand=True)
        outputs = train_stack(f"{GROUP},{ON_DEMAND}")
        boto3.client("cloudformation").update_stack(
            StackName="bin-counter-TrainStack", TemplateBody=outputs
        )

    def desired_of(self, group: str) -> int:
        described = self.autoscaling.describe_auto_scaling_groups(AutoScalingGroupNames=[group])
        desired: int = described["AutoScalingGroups"][0]["DesiredCapacity"]
        return desired

    def instance(self) -> str:
        """The group's one machine."""
        (group,) = self.autoscaling.describe_auto_scaling_groups()["AutoScalingGroups"]
        (instance,) = group["Instances"]
        instance_id: str = instance["InstanceId"]
        return instance_id

    def booking(self) -> Any:
        actions = self.autoscaling.describe_scheduled_actions(AutoScalingGroupName=GROUP)
        (action,) = actions["ScheduledUpdateGroupActions"]
        return action

    def active(self) -> str | None:
        active = current_run(self.s3, "bins")
        return active["run_id"] if active else None

    def end_run(self) -> None:
        """No run is active any more, as its machine says at its end."""
        active = current_run(self.s3, "bins")
        assert active
        assert deactivate_run(self.s3, "bins", active)

    def run_ids(self) -> set[str]:
        return {key.split("/")[1] for key in list_keys(self.s3, "bins", "runs/")}

    def record(self, run_id: str | None = None) -> RunRecord:
        """Of the run named, or of the one that was started beside EARLIER."""
        if run_id is None:
            (run_id,) = self.run_ids() - {EARLIER["run_id"]}
        return RunRecord(self.s3, "bins", run_id)

    def order(self, *operations: str) -> list[str]:
        return [operation for operation, _ in self.calls if operation in operations]

    def nothing_started(self) -> bool:
        return self.desired() == 0 and self.active() is None

    def put(self, key: str, content: str = "") -> None:
        self.s3.put_object(Bucket="bins", Key=key, Body=content.encode())

    def add_run(
        self,
        state: State,
        *attempts: Attempt,
        run: CurrentRun = EARLIER,
        active: bool = False,
        hours: float = 2,
    ) -> RunRecord:
        """A run with a record, whose deadline is in `hours`."""
        record = RunRecord(self.s3, "bins", run["run_id"])
        deadline = datetime.now(UTC) + timedelta(hours=hours)
        request = Request(
            run_id=run["run_id"],
            dataset="photos",
            arch="resnet50",
            train_arguments=[],
            deadline=deadline.isoformat(timespec="seconds"),
            estimate={},
            mode="head",
            ensemble_size=1,
            version=VERSION,
            epochs=20,
            chunks=32,
            runtime=run["runtime"],
        )
        record.write("request.json", request)
        self.put(record.key("code.tar.gz"), "code")
        record.set_status(state, f"is {state}", list(attempts))
        if active:
            activate_run(self.s3, "bins", run)
        return record

    def at_work(self) -> RunRecord:
        """EARLIER at work on the group's machine."""
        self.set_desired(1)
        return self.add_run("running", attempt(self.instance()), active=True)

    def lose_machine(self) -> None:
        """The group at 1, and no machine."""
        (group,) = self.autoscaling.describe_auto_scaling_groups()["AutoScalingGroups"]
        group |= {"Instances": [], "DesiredCapacity": 1}
        self.answers["DescribeAutoScalingGroups"] = {"AutoScalingGroups": [group]}


def attempt(instance_id: str = "i-1", *, minutes_ago: float = 10) -> Attempt:
    """One that has not ended."""
    started = datetime.now(UTC) - timedelta(minutes=minutes_ago)
    return Attempt(
        instance_id=instance_id,
        instance_type="c7i.large",
        zone="us-east-1a",
        purchase="spot",
        started=started.isoformat(timespec="seconds"),
    )


def quota(vcpus: dict[str, float]) -> Callable[[Any], Any]:
    """Service Quotas' answers: 5 vCPUs, but for the codes in `vcpus`."""

    def answer(parameters: Any) -> Any:
        code = parameters["QuotaCode"]
        return {"Quota": {"QuotaName": f"All {code}", "Value": vcpus.get(code, 5.0)}}

    return answer


@pytest.fixture
def account(aws: None, monkeypatch: pytest.MonkeyPatch) -> Account:
    deploy()
    account = Account()
    call_aws = BaseClient._make_api_call  # type: ignore[attr-defined]

    def noted(client: Any, operation: str, parameters: Any) -> Any:
        account.before(operation)
        key = client._request_signer._credentials.access_key
        account.calls.append((operation, key))
        answer = account.answers.get(operation)
        if isinstance(answer, BaseException):
            raise answer
        if callable(answer):
            answer = answer(parameters)
        return call_aws(client, operation, parameters) if answer is None else answer

    monkeypatch.setattr(BaseClient, "_make_api_call", noted)
    return account


def deploy() -> None:
    """What the stacks, data_prep and training.runtime leave."""
    cloudformation = boto3.client("cloudformation")
    for stack, template in {
        "DataStack": with_outputs({"BucketName": "bins"}),
        "BudgetStack": with_outputs({"BudgetNames": "all,ec2,sagemaker", "AlertsTopicArn": TOPIC}),
        "TrainStack": train_stack(GROUP),
    }.items():
        cloudformation.create_stack(StackName=f"bin-counter-{stack}", TemplateBody=template)
    for name, spent in (("all", "4"), ("ec2", "1.5")):
        add_budget(name, spent)
    boto3.client("ssm").put_parameter(Name="/model", Value="none: no model", Type="String")
    ec2 = boto3.client("ec2")
    data: Any = {"ImageId": "ami-12c6146b", "InstanceType": TYPES[0]}
    ec2.create_launch_template(LaunchTemplateName="machine", LaunchTemplateData=data)
    create_group(GROUP)
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket="bins")
    manifest = {"photos": {"train": {"1": 4000, "2": 3000}, "test": {"1": 1000}}}
    s3.put_object(
        Bucket="bins", Key="datasets/photos/manifest.json", Body=json.dumps(manifest).encode()
    )
    s3.put_object(Bucket="bins", Key="weights/resnet50.pth", Body=b"tensors")
    s3.put_object(Bucket="bins", Key="runtime/a/requirements.txt", Body=b"")


def train_stack(groups: str) -> str:
    return with_outputs(
        {"LauncherRoleArn": ROLE, "GroupNames": groups, "ModelParameterName": "/model"}
    )


def with_outputs(outputs: dict[str, str]) -> str:
    """A template that has them."""
    return json.dumps(
        {
            "Resources": {"Any": {"Type": "AWS::SNS::Topic"}},
            "Outputs": {name: {"Value": value} for name, value in outputs.items()},
        }
    )


def create_group(name: str, *, on_demand: bool = False) -> None:
    boto3.client("autoscaling").create_auto_scaling_group(
        AutoScalingGroupName=name,
        MinSize=0,
        MaxSize=1,
        AvailabilityZones=["us-east-1a"],
        MixedInstancesPolicy={
            "LaunchTemplate": {
                "LaunchTemplateSpecification": {"LaunchTemplateName": "machine", "Version": "1"},
                "Overrides": [{"InstanceType": name} for name in TYPES],
            },
            "InstancesDistribution": {"OnDemandPercentageAboveBaseCapacity": 100 * on_demand},
        },
    )


def subscriptions(*arns: str) -> Any:
    """SNS's answer for a topic with these."""
    return {"Subscriptions": [{"SubscriptionArn": arn} for arn in arns]}


def add_budget(name: str, spent: str) -> None:
    """A monthly budget of $10, of which `spent` is spent."""
    budget: Any = {
        "BudgetName": name,
        "BudgetType": "COST",
        "TimeUnit": "MONTHLY",
        "BudgetLimit": {"Amount": "10", "Unit": "USD"},
        "CalculatedSpend": {"ActualSpend": {"Amount": spent, "Unit": "USD"}},
    }
    boto3.client("budgets").create_budget(AccountId="123456789012", Budget=budget)


def run(*words: str) -> bool:
    """`python -m training.launch` with these words; errors are raised."""
    succeeded: bool = app(list(words))
    return succeeded


def start(*flags: str) -> None:
    run("--dataset", "photos", "--yes", *flags)


class Clock:
    """Stands for the module `time`; `meanwhile` is called in each sleep."""

    def __init__(self) -> None:
        self.now = 0.0
        self.sleeps = 0
        self.meanwhile: Callable[[], object] = lambda: None

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.sleeps += 1
        assert self.sleeps < 100, "it never ends"
        self.meanwhile()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (follow, logs, stop):
        monkeypatch.setattr(module, "time", clock)
    return clock
