"""The deny that a spent budget attaches to the launcher's role, with -c over_budget=deny."""

from collections.abc import Iterator
from typing import Any

import pytest

from common.names import group_name
from rehearsal.aws.stand_in import ACCOUNT, REGION
from tests.support.policies import Deployed, Evaluator, Request
from tests.support.synthesized import Template, plain

GROUP = (
    f"arn:aws:autoscaling:{REGION}:{ACCOUNT}:autoScalingGroup:uuid:"
    f"autoScalingGroupName/{group_name('bins-dev')}"
)
ENDPOINT = f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:endpoint/any"
EXECUTOR = "OverBudgetExecutor"


@pytest.fixture
def template(other_stacks: dict[str, Template]) -> Template:
    return other_stacks["TrainStack"]


@pytest.fixture
def deployed(other_stacks: dict[str, Template]) -> Deployed:
    return Deployed(other_stacks)


@pytest.fixture(scope="module")
def evaluator() -> Iterator[Evaluator]:
    evaluator = Evaluator()
    yield evaluator
    evaluator.close()


def is_allowed(
    evaluator: Evaluator, policy: Any, action: str, resource: str, **context: str
) -> bool:
    """Whether a role with `policy` may do this."""
    request = Request(
        principal=f"arn:aws:sts::{ACCOUNT}:assumed-role/role/session",
        action=action,
        resource=resource,
        context=context,
        identity_policy=policy,
    )
    (allowed,) = evaluator.decide([request])
    return allowed


def launcher(deployed: Deployed, *, denied: bool) -> Any:
    """What the launcher's role may do, before and after Budgets has attached the deny."""
    policy = deployed.role_policies()["LauncherRole"]
    (deny,) = deployed.of_type("AWS::IAM::ManagedPolicy").values()
    extra = deny["PolicyDocument"]["Statement"] if denied else []
    # As an administrator might widen the role, so that the deny is what decides.
    wide = {"Effect": "Allow", "Action": "sagemaker:*", "Resource": "*"}
    return {**policy, "Statement": [*policy["Statement"], wide, *extra]}


@pytest.mark.parametrize(
    ("action", "resource"),
    [
        ("autoscaling:PutScheduledUpdateGroupAction", GROUP),
        ("s3:PutObject", "arn:aws:s3:::<bucket>/runs/any/request.json"),
        ("s3:PutObject", "arn:aws:s3:::<bucket>/runs/any/code.tar.gz"),
        ("sagemaker:CreateEndpoint", ENDPOINT),
        ("sagemaker:CreateTrainingJob", ENDPOINT.replace("endpoint", "training-job")),
    ],
)
def test_over_budget_the_launcher_may_start_nothing(
    deployed: Deployed, evaluator: Evaluator, action: str, resource: str
) -> None:
    before, after = (
        is_allowed(evaluator, launcher(deployed, denied=denied), action, resource)
        for denied in (False, True)
    )
    assert before
    assert not after


@pytest.mark.parametrize(
    ("action", "resource"),
    [
        ("autoscaling:SetDesiredCapacity", GROUP),
        ("sagemaker:DeleteEndpoint", ENDPOINT),
    ],
)
def test_over_budget_the_launcher_may_still_stop_what_runs(
    deployed: Deployed, evaluator: Evaluator, action: str, resource: str
) -> None:
    assert is_allowed(evaluator, launcher(deployed, denied=True), action, resource)


def test_the_spent_budget_attaches_the_deny_by_itself(template: Template) -> None:
    action = template.only("AWS::Budgets::BudgetsAction")
    assert action["NotificationType"] == "ACTUAL"
    assert action["ActionThreshold"] == {"Type": "PERCENTAGE", "Value": 100}
    assert action["ApprovalModel"] == "AUTOMATIC"
    (deny,) = (n for n, r in template.resources.items() if r["Type"] == "AWS::IAM::ManagedPolicy")
    (role,) = (n for n in template.resources if n.startswith("LauncherRole") and "Policy" not in n)
    assert action["Definition"] == {
        "IamActionDefinition": {"PolicyArn": f"<{deny}>", "Roles": [f"<{role}>"]}
    }


def test_the_budget_of_the_action_is_the_accounts_and_outlives_changed_alerts(
    template: Template,
) -> None:
    budget = template.only("AWS::Budgets::Budget")
    assert budget["Budget"]["BudgetLimit"] == {"Amount": 20, "Unit": "USD"}
    assert "CostFilters" not in budget["Budget"]
    # CloudFormation replaces a budget whose alerts change, and AWS deletes its actions with it.
    assert "NotificationsWithSubscribers" not in budget


def test_nothing_is_attached_before_the_budget_is_spent(template: Template) -> None:
    deny = template.only("AWS::IAM::ManagedPolicy")
    assert not deny.keys() & {"Roles", "Users", "Groups"}
    for role in template.of_type("AWS::IAM::Role"):
        assert "ManagedPolicyArns" not in role


def test_the_topic_hears_of_it(template: Template) -> None:
    (subscriber,) = template.only("AWS::Budgets::BudgetsAction")["Subscribers"]
    assert subscriber["Type"] == "SNS"
    assert "Alerts" in subscriber["Address"]


def test_budgets_may_attach_and_detach_this_deny_on_this_role_alone(
    deployed: Deployed, evaluator: Evaluator
) -> None:
    policy = deployed.role_policies()[EXECUTOR]
    (role,), (deny,) = policy["Statement"], deployed.of_type("AWS::IAM::ManagedPolicy")
    launcher_arn, ours = role["Resource"], f"arn:aws:iam::{ACCOUNT}:policy/<{deny}>"
    administrator = "arn:aws:iam::aws:policy/AdministratorAccess"
    tried = {
        (action, resource, attached): is_allowed(
            evaluator, policy, action, resource, **{"iam:PolicyARN": attached}
        )
        for action in ("iam:AttachRolePolicy", "iam:DetachRolePolicy")
        for resource in (launcher_arn, f"arn:aws:iam::{ACCOUNT}:role/other")
        for attached in (ours, administrator)
    }
    assert {question for question, allowed in tried.items() if allowed} == {
        ("iam:AttachRolePolicy", launcher_arn, ours),
        ("iam:DetachRolePolicy", launcher_arn, ours),
    }


def test_only_budgets_of_this_account_may_act(template: Template) -> None:
    (role,) = (
        r["Properties"]
        for name, r in template.resources.items()
        if r["Type"] == "AWS::IAM::Role" and name.startswith(EXECUTOR)
    )
    (statement,) = role["AssumeRolePolicyDocument"]["Statement"]
    assert statement["Principal"] == {"Service": "budgets.amazonaws.com"}
    assert statement["Condition"] == {
        "StringEquals": {"aws:SourceAccount": "<AWS::AccountId>"},
        "ArnLike": {"aws:SourceArn": "arn:<AWS::Partition>:budgets::<AWS::AccountId>:budget/*"},
    }


def test_an_output_is_the_command_that_lifts_it(template: Template) -> None:
    words = plain(template.raw["Outputs"]["LiftDeny"]["Value"]).split()
    (budget,) = (n for n, r in template.resources.items() if r["Type"] == "AWS::Budgets::Budget")
    (action,) = (
        n for n, r in template.resources.items() if r["Type"] == "AWS::Budgets::BudgetsAction"
    )
    assert words[:3] == ["aws", "budgets", "execute-budget-action"]
    assert dict(zip(words[3::2], words[4::2], strict=True)) == {
        "--account-id": "<AWS::AccountId>",
        "--budget-name": f"<{budget}>",
        "--action-id": f"<{action}.ActionId>",
        "--execution-type": "REVERSE_BUDGET_ACTION",
    }


def test_by_default_a_spent_budget_only_alerts(stacks: dict[str, Template]) -> None:
    template = stacks["TrainStack"]
    assert template.of_type("AWS::Budgets::BudgetsAction") == []
    assert template.of_type("AWS::IAM::ManagedPolicy") == []
    assert "LiftDeny" not in template.raw["Outputs"]
