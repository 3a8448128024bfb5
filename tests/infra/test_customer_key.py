"""The key of -c kms=customer: who may use it, for what, and what it encrypts."""

import json
from fnmatch import fnmatchcase
from typing import Any

import pytest

from common.names import log_group_name
from tests.support.synthesized import Template

ARN = "arn:<AWS::Partition>"
HERE = "<AWS::Region>:<AWS::AccountId>"
SERVICE_ROLES = f"{ARN}:iam::<AWS::AccountId>:role/aws-service-role"
USE = ["kms:Decrypt", "kms:Encrypt", "kms:GenerateDataKey*", "kms:ReEncrypt*"]
KEY_ARN = "<bins-dev-DataStack:ExportsOutputFnGetAttCustomerKeyA9FF30A4ArnE55436B0>"


@pytest.fixture
def key(other_stacks: dict[str, Template]) -> dict[str, Any]:
    return other_stacks["DataStack"].only("AWS::KMS::Key")


@pytest.fixture
def policy(key: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Sid to statement; that of the account has none."""
    return {s.get("Sid", ""): s for s in key["KeyPolicy"]["Statement"]}


def test_by_default_there_is_no_key_and_nobody_may_use_one(stacks: dict[str, Template]) -> None:
    for template in stacks.values():
        assert "kms:" not in json.dumps(template.raw).lower()
        assert template.of_type("AWS::KMS::Key") == []


def test_it_rotates_and_can_be_had_back_for_a_month(key: dict[str, Any]) -> None:
    assert key["EnableKeyRotation"] is True
    assert key["PendingWindowInDays"] == 30


def test_roles_of_the_account_have_their_rights_in_their_own_policies(
    policy: dict[str, dict[str, Any]],
) -> None:
    account = policy.pop("")
    assert account["Principal"] == {"AWS": f"{ARN}:iam::<AWS::AccountId>:root"}
    assert "Condition" not in account
    assert set(policy) == {
        "BudgetsMayPublish",
        "CloudwatchMayPublish",
        "LogsMayKeep",
        "UseDisks",
        "LendDisks",
    }


@pytest.mark.parametrize(
    ("sid", "service", "sources"),
    [
        ("BudgetsMayPublish", "budgets", f"{ARN}:budgets::<AWS::AccountId>:*"),
        ("CloudwatchMayPublish", "cloudwatch", f"{ARN}:cloudwatch:{HERE}:alarm:*"),
    ],
)
def test_alerts_of_this_account_alone_reach_an_encrypted_topic(
    policy: dict[str, dict[str, Any]], sid: str, service: str, sources: str
) -> None:
    assert policy[sid]["Principal"] == {"Service": f"{service}.amazonaws.com"}
    assert policy[sid]["Action"] == ["kms:Decrypt", "kms:GenerateDataKey*"]
    assert policy[sid]["Condition"] == {
        "StringEquals": {"aws:SourceAccount": "<AWS::AccountId>"},
        "ArnLike": {"aws:SourceArn": sources},
    }


def test_whoever_may_publish_may_encrypt(
    policy: dict[str, dict[str, Any]], other_stacks: dict[str, Template]
) -> None:
    topic = other_stacks["BudgetStack"].only("AWS::SNS::TopicPolicy")["PolicyDocument"]
    publishers = [
        (s["Principal"], s["Condition"]) for s in topic["Statement"] if s["Effect"] == "Allow"
    ]
    assert publishers
    for publisher in publishers:
        assert publisher in [(s["Principal"], s.get("Condition")) for s in policy.values()]


def test_logs_use_it_for_our_log_group(policy: dict[str, dict[str, Any]]) -> None:
    statement = policy["LogsMayKeep"]
    assert statement["Principal"] == {"Service": "logs.<AWS::Region>.amazonaws.com"}
    pattern = statement["Condition"]["ArnLike"]["kms:EncryptionContext:aws:logs:arn"]
    assert pattern.startswith(f"{ARN}:logs:{HERE}:log-group:/bins-dev/")
    assert fnmatchcase(f"{ARN}:logs:{HERE}:log-group:{log_group_name('bins-dev')}", pattern)


@pytest.mark.parametrize(
    ("sid", "actions", "more"),
    [
        ("UseDisks", sorted(["kms:DescribeKey", *USE]), {}),
        ("LendDisks", "kms:CreateGrant", {"Bool": {"kms:GrantIsForAWSResource": "true"}}),
    ],
)
def test_the_roles_that_start_machines_encrypt_their_disks(
    policy: dict[str, dict[str, Any]], sid: str, actions: object, more: dict[str, Any]
) -> None:
    assert policy[sid]["Action"] == actions
    assert policy[sid]["Condition"] == more | {
        "ArnEquals": {
            "aws:PrincipalArn": [
                f"{SERVICE_ROLES}/autoscaling.amazonaws.com/AWSServiceRoleForAutoScaling",
                f"{SERVICE_ROLES}/spot.amazonaws.com/AWSServiceRoleForEC2Spot",
            ]
        }
    }


def test_nobody_else_is_let_in_without_a_condition(policy: dict[str, dict[str, Any]]) -> None:
    for sid, statement in policy.items():
        assert sid == "" or statement["Condition"]
        assert statement["Effect"] == "Allow"


def test_it_encrypts_data_disks_logs_alerts_and_the_endpoint(
    other_stacks: dict[str, Template],
) -> None:
    train, endpoint = other_stacks["TrainStack"], other_stacks["EndpointStack"]
    machine = train.only("AWS::EC2::LaunchTemplate")["LaunchTemplateData"]
    configuration = endpoint.only("AWS::SageMaker::EndpointConfig")
    assert [disk["Ebs"]["KmsKeyId"] for disk in machine["BlockDeviceMappings"]] == [KEY_ARN]
    assert train.only("AWS::Logs::LogGroup")["KmsKeyId"] == KEY_ARN
    assert other_stacks["BudgetStack"].only("AWS::SNS::Topic")["KmsMasterKeyId"] == KEY_ARN
    assert configuration["KmsKeyId"] == KEY_ARN
    assert configuration["DataCaptureConfig"]["KmsKeyId"] == KEY_ARN
    data = other_stacks["DataStack"]
    (bucket,) = [b for b in data.of_type("AWS::S3::Bucket") if "LoggingConfiguration" in b]
    (rule,) = bucket["BucketEncryption"]["ServerSideEncryptionConfiguration"]
    assert rule == {
        "BucketKeyEnabled": True,
        "ServerSideEncryptionByDefault": {
            "KMSMasterKeyID": "<CustomerKeyA9FF30A4.Arn>",
            "SSEAlgorithm": "aws:kms",
        },
    }


@pytest.mark.parametrize(
    ("role", "services"),
    [
        ("TrainerMachineRole", ["s3", "sns"]),
        ("LauncherRole", ["s3"]),
        ("TrainingJobRole", ["s3"]),
        ("PreparationJobRole", ["s3"]),
    ],
)
def test_a_role_uses_it_only_through_the_services_that_it_calls(
    other_stacks: dict[str, Template], role: str, services: list[str]
) -> None:
    statement = other_stacks["TrainStack"].statements(role)["UseKey"]
    assert statement["Action"] == ["kms:Decrypt", "kms:GenerateDataKey"]
    assert statement["Resource"] == KEY_ARN
    via = [f"{service}.<AWS::Region>.<AWS::URLSuffix>" for service in services]
    allowed = statement["Condition"]["StringEquals"]["kms:ViaService"]
    assert ([allowed] if isinstance(allowed, str) else allowed) == via
