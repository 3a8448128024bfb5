"""Each role may do what its tables say and nothing more.

recorded_*.csv: what our code calls, see rehearsal/aws/recorder.py.
documented_calls.csv: what an AWS service calls in a role's name, or what the stand-in for AWS does
not answer; each with the page that says so.
tempting_calls.csv: what somebody who got hold of a role would like to do.
"""

import csv
from collections.abc import Iterator
from typing import Any

import pytest

from rehearsal.aws.recorder import HERE, Call, read_calls
from rehearsal.aws.stand_in import ACCOUNT
from tests.support.policies import TABLES, Deployed, Evaluator, Policy, Request, documented_calls
from tests.support.synthesized import Template, synthesize

RECORDED = {
    call
    for table in (
        "recorded_calls.csv",
        "recorded_notebook_calls.csv",
        "recorded_preparation_calls.csv",
    )
    for call in read_calls(TABLES / table)
}
TEMPTING = sorted(read_calls(TABLES / "tempting_calls.csv"))
DEFAULT = {"endpoint": "serverless", "kms": "aws", "over_budget": "alert"}
OTHERWISE = {"endpoint": "realtime", "kms": "customer", "over_budget": "deny"}
ROLES = (
    "ExecutionRole",
    "LauncherRole",
    "OverBudgetExecutor",
    "PreparationJobRole",
    "TrainerMachineRole",
    "TrainingJobRole",
)
STRANGER = "999999999999"  # somebody else's account


def statement(**parts: Any) -> Policy:
    return {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", **parts}]}


EVERYTHING = statement(Action="*", Resource="*")
OF_THE_ACCOUNT = statement(  # what a key has unless somebody writes another
    Principal={"AWS": f"arn:aws:iam::{ACCOUNT}:root"}, Action="kms:*", Resource="*"
)


class Deployment:
    """The roles of the stacks with some settings: what they may do, and what they have to do."""

    def __init__(self, stacks: dict[str, Template], settings: dict[str, str]) -> None:
        self.stacks = Deployed(stacks)
        self.policies = self.stacks.role_policies()
        self.resource_policies = self.stacks.resource_policies()
        self._calls = RECORDED | documented_calls(settings)

    def roles_with_calls(self) -> set[str]:
        return {call.role for call in self._calls}

    def calls_of(self, role: str) -> list[Call]:
        return sorted(call for call in self._calls if call.role == role)

    def request(self, role: str, policy: Policy, call: Call) -> Request:
        """`call` by `role`, were its policy `policy`."""
        return Request(
            principal=f"arn:aws:sts::{ACCOUNT}:assumed-role/<{role}>/session",
            action=call.action,
            resource=call.resource,
            context=dict([call.condition.split("=", 1)] if call.condition else []),
            identity_policy=policy,
            resource_policy=self.resource_policy(call.resource),
        )

    def resource_policy(self, resource: str) -> Policy | None:
        """Of the bucket, where `resource` is an object."""
        if resource.startswith("arn:aws:s3:::"):
            resource = resource.split("/")[0]
        elif resource.startswith("arn:aws:kms:"):
            return self.resource_policies.get(resource, OF_THE_ACCOUNT)
        return self.resource_policies.get(resource)


@pytest.fixture(scope="module")
def evaluator() -> Iterator[Evaluator]:
    evaluator = Evaluator()
    yield evaluator
    evaluator.close()


@pytest.fixture(scope="module")
def default(stacks: dict[str, Template]) -> Deployment:
    return Deployment(stacks, DEFAULT)


@pytest.fixture(scope="module")
def otherwise(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    return Deployment(synthesize(tmp_path_factory.mktemp("cdk.out"), **OTHERWISE), OTHERWISE)


@pytest.fixture(params=["default", "otherwise"])
def deployment(request: pytest.FixtureRequest) -> Deployment:
    deployment: Deployment = request.getfixturevalue(request.param)
    return deployment


def test_every_role_has_its_calls_in_a_table(deployment: Deployment) -> None:
    assert deployment.roles_with_calls() == set(deployment.policies)


def test_a_role_may_do_all_that_it_has_to(deployment: Deployment, evaluator: Evaluator) -> None:
    for role, policy in deployment.policies.items():
        calls = deployment.calls_of(role)
        allowed = evaluator.decide([deployment.request(role, policy, call) for call in calls])
        denied = [call for call, ok in zip(calls, allowed, strict=True) if not ok]
        assert denied == [], f"{role} lacks a permission"


def test_a_role_may_do_nothing_that_it_need_not(
    deployment: Deployment, evaluator: Evaluator
) -> None:
    """Without any statement, action, resource or prefix of its policy, something breaks."""
    spare = []
    for role, policy in deployment.policies.items():
        for part, actions, rest in parts(policy):
            calls = [call for call in deployment.calls_of(role) if call.action in actions]
            before, after = (
                evaluator.decide([deployment.request(role, either, call) for call in calls])
                for either in (policy, rest)
            )
            if after == before:
                spare.append(f"{role}, {part}")
    assert spare == []


def parts(policy: Policy) -> Iterator[tuple[str, list[str], Policy]]:
    """Each piece that can be taken out of a policy: in words, the actions that this may change,
    and the policy without it."""
    for index, statement in enumerate(policy["Statement"]):
        others = [*policy["Statement"][:index], *policy["Statement"][index + 1 :]]
        actions = as_list(statement["Action"])
        yield statement["Sid"], actions, policy | {"Statement": others}
        for name, rest in shorter(statement):
            part = f"{statement['Sid']}: {name}"
            yield part, actions, policy | {"Statement": [*others, rest]}


def shorter(statement: Policy) -> Iterator[tuple[str, Policy]]:
    """The statement with one action, resource or condition value less, where it has several."""
    for key in ("Action", "Resource"):
        for value, rest in one_less(statement[key]):
            yield value, statement | {key: rest}
    for operator, tests in statement.get("Condition", {}).items():
        for key, values in tests.items():
            for value, rest in one_less(values):
                condition = statement["Condition"] | {operator: tests | {key: rest}}
                yield f"{key}={value}", statement | {"Condition": condition}


def one_less(values: str | list[str]) -> list[tuple[str, list[str]]]:
    """Each of several values, and the others."""
    several = as_list(values)
    if len(several) == 1:
        return []
    return [(value, [other for other in several if other != value]) for value in several]


def as_list(values: str | list[str]) -> list[str]:
    return [values] if isinstance(values, str) else values


@pytest.mark.parametrize("role", ROLES)
def test_what_is_tempting_is_denied(otherwise: Deployment, evaluator: Evaluator, role: str) -> None:
    tempting = [call for call in TEMPTING if call.role in ("every", role)]
    assert len(tempting) >= 30

    def allowed(policy: Policy) -> list[Call]:
        requests = [otherwise.request(role, policy, call) for call in tempting]
        return [c for c, ok in zip(tempting, evaluator.decide(requests), strict=True) if ok]

    assert allowed(otherwise.policies[role]) == []
    assert allowed(EVERYTHING) == tempting, "a request that nobody could make proves nothing"


def test_what_is_tempting_is_denied_by_default_as_well(
    default: Deployment, evaluator: Evaluator
) -> None:
    for role, policy in default.policies.items():
        tempting = [call for call in TEMPTING if call.role in ("every", role)]
        answers = evaluator.decide([default.request(role, policy, call) for call in tempting])
        assert not any(answers), role


def test_each_document_is_a_page_of_aws() -> None:
    with (TABLES / "documented_calls.csv").open(newline="") as table:
        for row in csv.DictReader(table):
            assert row["page"].startswith("https://docs.aws.amazon.com/"), row


# EC2 names no source when it takes a role for an instance, and need not: only who may pass the
# role, in its own account, can give it to an instance.
# https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/iam-roles-for-amazon-ec2.html
SOURCELESS = {"ec2.amazonaws.com"}
# What CloudWatch Logs names instead, when it uses a key for a log group.
LOG_GROUP_KEY = "kms:EncryptionContext:aws:logs:arn"


def test_a_service_takes_a_role_for_this_account_alone(
    otherwise: Deployment, evaluator: Evaluator
) -> None:
    takers = {}
    for name, role in otherwise.stacks.of_type("AWS::IAM::Role").items():
        trust = role["AssumeRolePolicyDocument"]
        (principal,) = (s["Principal"] for s in trust["Statement"])
        service = principal.get("Service")
        if not service:
            continue
        takers[name] = service
        ours, theirs, others = evaluator.decide(
            [
                Request(
                    principal=taker,
                    action="sts:AssumeRole",
                    resource=f"arn:aws:iam::{ACCOUNT}:role/<{name}>",
                    context=in_the_name_of(account, service),
                    resource_policy=trust,
                )
                for taker, account in (
                    (service, ACCOUNT),
                    (service, STRANGER),
                    ("lambda.amazonaws.com", ACCOUNT),
                )
            ]
        )
        assert (ours, theirs, others) == (True, service in SOURCELESS, False), name
    assert takers == {
        "ExecutionRole": "sagemaker.amazonaws.com",
        "OverBudgetExecutor": "budgets.amazonaws.com",
        "PreparationJobRole": "sagemaker.amazonaws.com",
        "TrainerMachineRole": "ec2.amazonaws.com",
        "TrainingJobRole": "sagemaker.amazonaws.com",
    }


def in_the_name_of(account: str, service: str) -> dict[str, str]:
    """What a service says of whose resource it acts for."""
    source = {
        "budgets.amazonaws.com": f"arn:aws:budgets::{account}:budget/monthly",
        "cloudwatch.amazonaws.com": f"arn:aws:cloudwatch:us-east-1:{account}:alarm:slow",
        "logging.s3.amazonaws.com": "arn:aws:s3:::<bucket>",
        "sagemaker.amazonaws.com": f"arn:aws:sagemaker:us-east-1:{account}:model/model",
    }
    return {"aws:SourceAccount": account, "aws:SourceArn": source.get(service, "")}


def test_only_services_of_this_account_reach_topic_key_and_logs(
    otherwise: Deployment, evaluator: Evaluator
) -> None:
    budgets, cloudwatch = "budgets.amazonaws.com", "cloudwatch.amazonaws.com"
    logging = "logging.s3.amazonaws.com"
    topic = f"arn:aws:sns:{HERE}:<topic>"
    key = f"arn:aws:kms:{HERE}:key/<CustomerKey>"
    log = "arn:aws:s3:::<DataAccessLogs>/data/2026-11-23"
    for service, action, resource in (
        (budgets, "sns:Publish", topic),
        (budgets, "kms:GenerateDataKey", key),
        (cloudwatch, "sns:Publish", topic),
        (cloudwatch, "kms:GenerateDataKey", key),
        (logging, "s3:PutObject", log),
    ):
        answers = evaluator.decide(
            [
                Request(
                    principal=service,
                    action=action,
                    resource=resource,
                    context=in_the_name_of(account, service),
                    resource_policy=otherwise.resource_policy(resource),
                )
                for account in (ACCOUNT, STRANGER)
            ]
        )
        assert answers == [True, False], f"{service} on {resource}"


def test_every_service_principal_has_to_name_its_source(otherwise: Deployment) -> None:
    trusts = {
        name: role["AssumeRolePolicyDocument"]
        for name, role in otherwise.stacks.of_type("AWS::IAM::Role").items()
    }
    services = {
        (name, statement["Principal"]["Service"], *sources(statement))
        for name, policy in (trusts | otherwise.resource_policies).items()
        for statement in policy["Statement"]
        if "Service" in statement["Principal"]
    }
    unsourced = {service for _, service, *keys in services if not keys}
    assert unsourced == SOURCELESS
    assert len(services) >= 8


def sources(statement: Policy) -> list[str]:
    """The condition keys that say whose resource a service acts for."""
    keys = {key for tests in statement.get("Condition", {}).values() for key in tests}
    return sorted(keys & {"aws:SourceAccount", "aws:SourceArn", LOG_GROUP_KEY})


@pytest.mark.parametrize(
    ("action", "resource"),
    [
        ("s3:GetObject", "arn:aws:s3:::<bucket>/runs/<run>/model.tar.gz"),
        ("s3:PutObject", "arn:aws:s3:::<bucket>/runs/<run>/code.tar.gz"),
        ("s3:GetObject", "arn:aws:s3:::<DataAccessLogs>/data/2026-11-23"),
        ("sns:Publish", f"arn:aws:sns:{HERE}:<topic>"),
        ("kms:Decrypt", f"arn:aws:kms:{HERE}:key/<CustomerKey>"),
    ],
)
def test_a_stranger_reaches_nothing_and_we_only_with_tls(
    otherwise: Deployment, evaluator: Evaluator, action: str, resource: str
) -> None:
    with_tls, without, stranger = evaluator.decide(
        [
            Request(
                principal=f"arn:aws:iam::{account}:user/somebody",
                action=action,
                resource=resource,
                context={"aws:SecureTransport": tls},
                identity_policy=EVERYTHING,
                resource_policy=otherwise.resource_policy(resource),
            )
            for account, tls in ((ACCOUNT, "true"), (ACCOUNT, "false"), (STRANGER, "true"))
        ]
    )
    assert with_tls
    assert not stranger
    assert without == action.startswith("kms:"), "KMS answers with TLS alone"
