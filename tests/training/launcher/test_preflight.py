"""What is checked before a run starts, and what each line says."""

import json
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from common.outputs import NO_BUDGETS
from common.storage import list_keys
from tests.support import training_account
from tests.support.training_account import (
    TOPIC,
    TYPES,
    Account,
    add_budget,
    quota,
    start,
    subscriptions,
)
from training.launcher.checklist import NotCheckedError
from training.launcher.deployment import LaunchError
from training.launcher.machine_checks import quota_code

account = training_account.account


def refused(account: Account, capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """The error and the screen of a launch that a check prevents."""
    with pytest.raises(LaunchError) as caught:
        start()
    assert account.nothing_started()
    assert list_keys(account.s3, "bins", "runs/") == []
    return str(caught.value), capsys.readouterr().out


def line(screen: str, name: str) -> str:
    """The line of the check `name`, without its columns' padding."""
    (found,) = (each for each in screen.splitlines() if each[15:].startswith(f"{name} "))
    return " ".join(found.split())


def test_each_check_is_one_line(account: Account, capsys: pytest.CaptureFixture[str]) -> None:
    start()
    lines = capsys.readouterr().out.splitlines()[:10]
    assert [" ".join(each.split()) for each in lines] == [
        "ok group trainers at 0",
        "ok data set photos, 8,000 photos",
        "ok weights weights/resnet50.pth",
        "ok wheels runtime/a/",
        "ok types c7i-flex.large, m7i-flex.large; at most 2 vCPUs",
        "ok quota 5 vCPUs for All L-34B43A08, 2 needed",
        "ok plan paid, any type",
        "ok memory 4 GiB at least, 4 needed",
        "ok alerts subscriptions: 1 of 1 confirmed",
        "ok budget month: $6.00 left of $10.00; training: $8.50 left of $10.00",
    ]


def group_with(account: Account, *names: str) -> None:
    """The group may start machines of these types."""
    (group,) = account.autoscaling.describe_auto_scaling_groups()["AutoScalingGroups"]
    overrides = [{"InstanceType": name} for name in names]
    group["MixedInstancesPolicy"]["LaunchTemplate"]["Overrides"] = overrides
    account.answers["DescribeAutoScalingGroups"] = {"AutoScalingGroups": [group]}


def test_types_that_the_region_lacks_are_named_and_the_others_checked(
    account: Account, capsys: pytest.CaptureFixture[str]
) -> None:
    group_with(account, "c7i-flex.large", "c99.large", "m99.large")
    start()
    screen = capsys.readouterr().out
    assert line(screen, "types") == (
        "ok types c7i-flex.large; at most 2 vCPUs; us-east-1 has no c99.large, m99.large"
    )
    assert line(screen, "quota").startswith("ok quota ")
    assert line(screen, "plan").startswith("ok plan ")


def test_a_type_with_too_little_memory_is_refused_before_anything_is_spent(
    account: Account, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(LaunchError, match="memory"):
        start("--", "--mode", "finetune")
    assert account.nothing_started()
    assert line(capsys.readouterr().out, "memory") == (
        "no memory --mode finetune needs 5.1 GiB, too much for c7i-flex.large: leave these "
        "types out of instance_types in cdk.json's context, then `npx cdk deploy TrainStack`"
    )
    group_with(account, "m7i-flex.large")
    start("--", "--mode", "finetune")
    assert line(capsys.readouterr().out, "memory") == "ok memory 8 GiB at least, 5.1 needed"


def test_many_photos_need_memory_for_their_features(
    account: Account, capsys: pytest.CaptureFixture[str]
) -> None:
    many = {"photos": {"train": {"1": 400_000}, "test": {"1": 100_000}}}
    account.put("datasets/photos/manifest.json", json.dumps(many))
    assert "memory" in refused(account, capsys)[0]
    with pytest.raises(LaunchError):
        start()
    assert "--mode head needs 32.5 GiB, too much for" in capsys.readouterr().out


def test_members_need_memory_each(account: Account, capsys: pytest.CaptureFixture[str]) -> None:
    group_with(account, "m7i-flex.large")
    with pytest.raises(LaunchError, match="memory"):
        start("--", "--mode", "finetune", "--ensemble-size", "4")
    assert "needs 12.9 GiB, too much for m7i-flex.large" in capsys.readouterr().out


def test_nothing_starts_where_the_region_lacks_every_type(
    account: Account, capsys: pytest.CaptureFixture[str]
) -> None:
    account.answers["DescribeInstanceTypes"] = {"InstanceTypes": []}
    assert line(refused(account, capsys)[1], "types") == (
        f"no types us-east-1 has no {', '.join(TYPES)}: set instance_types in cdk.json's context "
        "to types that it has, then `npx cdk deploy TrainStack`"
    )


@pytest.mark.parametrize(
    ("key", "name", "command"),
    [
        ("datasets/photos/manifest.json", "data set", "python -m data_prep all --name photos"),
        ("weights/resnet50.pth", "weights", "python -m data_prep weights --arch resnet50"),
        ("runtime/a/requirements.txt", "wheels", "python -m training.runtime"),
    ],
)
def test_what_is_missing_is_named_with_the_command_that_makes_it(
    account: Account, capsys: pytest.CaptureFixture[str], key: str, name: str, command: str
) -> None:
    account.s3.delete_object(Bucket="bins", Key=key)
    error, screen = refused(account, capsys)
    assert error == f"not started, see above: {name}"
    assert line(screen, name).startswith(f"no {name} ")
    assert line(screen, name).endswith(f"run `{command}`")


def test_all_that_is_missing_is_named_at_once(
    account: Account, capsys: pytest.CaptureFixture[str]
) -> None:
    for key in list_keys(account.s3, "bins", ""):
        account.s3.delete_object(Bucket="bins", Key=key)
    account.answers["GetServiceQuota"] = quota({"L-34B43A08": 0})
    error, _ = refused(account, capsys)
    assert error == "not started, see above: data set, weights, wheels, quota"


def test_wheels_that_are_still_being_uploaded_do_not_count(
    account: Account, capsys: pytest.CaptureFixture[str]
) -> None:
    account.s3.delete_object(Bucket="bins", Key="runtime/a/requirements.txt")
    account.s3.put_object(Bucket="bins", Key="runtime/b/torch.whl", Body=b"")
    assert "training.runtime" in line(refused(account, capsys)[1], "wheels")


def test_too_small_a_quota_comes_with_the_command_that_requests_more(
    account: Account, capsys: pytest.CaptureFixture[str]
) -> None:
    account.answers["GetServiceQuota"] = quota({"L-34B43A08": 1})
    error, screen = refused(account, capsys)
    assert error == "not started, see above: quota"
    assert line(screen, "quota") == (
        "no quota 1 vCPUs for All L-34B43A08, 2 needed: run `aws service-quotas "
        "request-service-quota-increase --service-code ec2 --quota-code L-34B43A08 "
        "--desired-value 2` and wait for approval"
    )


@pytest.mark.parametrize(
    ("instance_type", "purchase", "code"),
    [
        ("c7i.large", "spot", "L-34B43A08"),
        ("c7i-flex.large", "on_demand", "L-1216C47A"),
        ("im4gn.large", "spot", "L-34B43A08"),
        ("t3.micro", "spot", "L-34B43A08"),
        ("g4dn.xlarge", "spot", "L-3819A6DF"),
        ("gr6.4xlarge", "on_demand", "L-DB2E81BA"),
        ("vt1.3xlarge", "on_demand", "L-DB2E81BA"),
    ],
)
def test_each_kind_of_machine_has_its_quota(instance_type: str, purchase: str, code: str) -> None:
    assert quota_code(instance_type, purchase) == code


@pytest.mark.parametrize("instance_type", ["p3.2xlarge", "inf2.xlarge", "trn1.2xlarge", "dl1.24xl"])
def test_other_quotas_are_left_to_the_user(instance_type: str) -> None:
    with pytest.raises(NotCheckedError, match="Service Quotas console"):
        quota_code(instance_type, "spot")


def test_the_free_plan_allows_eligible_types_alone(
    account: Account, capsys: pytest.CaptureFixture[str]
) -> None:
    account.answers["GetAccountPlanState"] = {
        "accountPlanType": "FREE",
        "accountPlanStatus": "ACTIVE",
    }
    start()
    assert line(capsys.readouterr().out, "plan") == "ok plan free, which allows these types"
    account.set_desired(0)
    account.record().set_status("failed", "", [])
    account.s3.delete_object(Bucket="bins", Key="control/current.json")
    known = [("c7i-flex.large", True), ("c7i.large", False)]
    account.answers["DescribeInstanceTypes"] = {
        "InstanceTypes": [
            {
                "InstanceType": name,
                "FreeTierEligible": eligible,
                "VCpuInfo": {"DefaultVCpus": 2},
                "MemoryInfo": {"SizeInMiB": 4096},
            }
            for name, eligible in known
        ]
    }
    group_with(account, *(name for name, _ in known))
    with pytest.raises(LaunchError, match="plan"):
        start()
    assert line(capsys.readouterr().out, "plan") == (
        'no plan the free plan does not allow c7i.large: set "instance_types": '
        f'"{",".join(TYPES)}" in cdk.json\'s context, then `npx cdk deploy TrainStack`'
    )


def test_an_expired_free_plan_starts_nothing(
    account: Account, capsys: pytest.CaptureFixture[str]
) -> None:
    account.answers["GetAccountPlanState"] = {
        "accountPlanType": "FREE",
        "accountPlanStatus": "EXPIRED",
    }
    assert "has expired: upgrade" in line(refused(account, capsys)[1], "plan")


@pytest.mark.parametrize(
    ("arns", "waiting"),
    [
        ([], ""),
        (["PendingConfirmation"], ", one awaits confirmation"),
        (["Deleted"], ""),
    ],
)
def test_alerts_that_no_one_hears_are_a_warning_and_the_run_starts(
    account: Account, capsys: pytest.CaptureFixture[str], arns: list[str], waiting: str
) -> None:
    account.answers["ListSubscriptionsByTopic"] = subscriptions(*arns)
    start()
    assert line(capsys.readouterr().out, "alerts") == (
        f"warning alerts no confirmed subscription{waiting}: run `aws sns subscribe --protocol "
        f"email --topic-arn {TOPIC} --notification-endpoint you@example.com` and confirm AWS's mail"
    )
    assert account.desired() == 1


def test_one_confirmed_subscription_is_enough(
    account: Account, capsys: pytest.CaptureFixture[str]
) -> None:
    account.answers["ListSubscriptionsByTopic"] = subscriptions("Deleted", f"{TOPIC}:1")
    start()
    said = line(capsys.readouterr().out, "alerts")
    assert said == "ok alerts subscriptions: 1 of 2 confirmed"


@pytest.mark.parametrize(
    ("name", "setting", "kind"),
    [("all", "monthly_budget_usd", "month"), ("ec2", "training_budget_usd", "training")],
)
def test_a_run_must_fit_into_what_is_left_of_each_budget(
    account: Account, capsys: pytest.CaptureFixture[str], name: str, setting: str, kind: str
) -> None:
    budgets = boto3.client("budgets")
    budgets.delete_budget(AccountId="123456789012", BudgetName=name)
    add_budget(name, "9.999")
    said = line(refused(account, capsys)[1], "budget")
    assert said.startswith(
        f"no budget {kind}: $0.00 left of $10.00, $0.01 needed: raise {setting} in"
    )
    assert "cdk.json's context, then `npx cdk deploy TrainStack`" in said


REFUSAL: Any = {"Error": {"Code": "AccessDeniedException", "Message": "no"}}


@pytest.mark.parametrize(
    ("operation", "names"),
    [
        ("DescribeInstanceTypes", ["types"]),
        ("ListSubscriptionsByTopic", ["alerts"]),
        ("GetServiceQuota", ["quota"]),
        ("GetAccountPlanState", ["plan"]),
        ("DescribeBudget", ["budget"]),
    ],
)
def test_what_aws_does_not_answer_is_not_checked_and_blocks_nothing(
    account: Account, capsys: pytest.CaptureFixture[str], operation: str, names: list[str]
) -> None:
    account.answers[operation] = ClientError(REFUSAL, operation)
    start()
    screen = capsys.readouterr().out
    for name in names:
        assert line(screen, name) == (
            f"not checked {name} {operation} failed with AccessDeniedException"
        )
    assert account.desired() == 1


def test_a_service_that_cannot_be_reached_is_not_checked(
    account: Account, capsys: pytest.CaptureFixture[str]
) -> None:
    account.answers["GetAccountPlanState"] = EndpointConnectionError(endpoint_url="https://free")
    start()
    assert line(capsys.readouterr().out, "plan").startswith("not checked plan Could not connect")


def test_budgets_of_an_older_stack_are_not_checked(
    account: Account, capsys: pytest.CaptureFixture[str]
) -> None:
    boto3.client("cloudformation").delete_stack(StackName="bin-counter-BudgetStack")
    start()
    assert line(capsys.readouterr().out, "budget").startswith(
        "not checked budget bin-counter-BudgetStack is not deployed here"
    )


def test_without_budgets_it_says_so_and_starts(
    account: Account, capsys: pytest.CaptureFixture[str]
) -> None:
    cloudformation = boto3.client("cloudformation")
    template = {
        "Resources": {"Any": {"Type": "AWS::SNS::Topic"}},
        "Outputs": {"BudgetNames": {"Value": NO_BUDGETS}},
    }
    cloudformation.update_stack(
        StackName="bin-counter-BudgetStack", TemplateBody=json.dumps(template)
    )
    start()
    assert line(capsys.readouterr().out, "budget") == (
        "not checked budget no budget: the stacks are deployed with budgets=no"
    )
    assert not account.order("DescribeBudget")
    assert account.desired() == 1


def test_a_budget_whose_spending_aws_does_not_state_is_not_checked(
    account: Account, capsys: pytest.CaptureFixture[str]
) -> None:
    limit = {"Amount": "10", "Unit": "USD"}
    account.answers["DescribeBudget"] = {"Budget": {"BudgetName": "all", "BudgetLimit": limit}}
    start()
    assert line(capsys.readouterr().out, "budget") == (
        "not checked budget AWS does not report the spending of all"
    )
    assert account.desired() == 1


def test_a_bucket_that_cannot_be_read_is_an_error_and_not_a_missing_check(
    account: Account,
) -> None:
    account.answers["ListObjectsV2"] = ClientError(REFUSAL, "ListObjectsV2")
    with pytest.raises(ClientError):
        start()
    account.answers.clear()
    assert account.nothing_started()


@pytest.mark.parametrize("process", ["ScheduledActions", "Terminate"])
def test_a_group_whose_booked_end_would_not_come_starts_nothing(
    account: Account, capsys: pytest.CaptureFixture[str], process: str
) -> None:
    boto3.client("autoscaling").suspend_processes(
        AutoScalingGroupName="trainers", ScalingProcesses=[process]
    )
    error, screen = refused(account, capsys)
    assert error == "not started, see above: group"
    assert f"resume-processes --auto-scaling-group-name trainers --scaling-processes {process}" in (
        line(screen, "group")
    )
