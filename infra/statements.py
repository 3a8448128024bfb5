"""Policy statements; those on the data bucket are narrower than CDK's `grant_read` gives."""

from collections.abc import Mapping, Sequence

from aws_cdk import ArnFormat, Aws, Stack
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_s3 as s3

from infra.acknowledge import acknowledge


def allow(
    sid: str,
    actions: Sequence[str],
    resources: Sequence[str],
    conditions: Mapping[str, object] | None = None,
) -> iam.PolicyStatement:
    """Allow `actions` on `resources`."""
    return iam.PolicyStatement(sid=sid, actions=actions, resources=resources, conditions=conditions)


def list_prefixes(bucket: s3.IBucket, prefixes: Sequence[str]) -> iam.PolicyStatement:
    """Allow to list what is under `prefixes`, such as `runs/*`, and nothing else."""
    only = {"StringLike": {"s3:prefix": list(prefixes)}}
    return allow("ListPrefixes", ["s3:ListBucket"], [bucket.bucket_arn], only)


def on_objects(
    sid: str, action: str, bucket: s3.IBucket, keys: Sequence[str]
) -> iam.PolicyStatement:
    """Allow `action` on the objects `keys`; a key may end in `*`."""
    return allow(sid, [action], [bucket.arn_for_objects(key) for key in keys])


def group_arns(stack: Stack, names: Sequence[str]) -> list[str]:
    """ARNs of Auto Scaling groups, with a wildcard for the id that AWS generates."""
    return [
        stack.format_arn(
            service="autoscaling",
            resource="autoScalingGroup",
            resource_name=f"*:autoScalingGroupName/{name}",
            arn_format=ArnFormat.COLON_RESOURCE_NAME,
        )
        for name in names
    ]


def acknowledge_groups(role: iam.Role, names: Sequence[str]) -> None:
    """Accept the wildcards of `group_arns`."""
    arn = "arn:<AWS::Partition>:autoscaling:<AWS::Region>:<AWS::AccountId>:autoScalingGroup"
    found = [f"IAM5[Resource::{arn}:*:autoScalingGroupName/{name}]" for name in names]
    acknowledge(role, found, "AWS generates the middle of the ARN; the name is fixed.")


def book(sid: str, group_arns: Sequence[str]) -> iam.PolicyStatement:
    """Allow to schedule changes of groups and their limits, but never more than one machine."""
    limits = {"autoscaling:MinSize": "0", "autoscaling:MaxSize": "1"}
    action = "autoscaling:PutScheduledUpdateGroupAction"
    return allow(sid, [action], group_arns, {"NumericLessThanEqualsIfExists": limits})


def cancel_bookings(sid: str, group_arns: Sequence[str]) -> iam.PolicyStatement:
    """Allow to delete scheduled changes of groups."""
    return allow(sid, ["autoscaling:DeleteScheduledAction"], group_arns)


def use_key(key: kms.IKey, services: Sequence[str]) -> iam.PolicyStatement:
    """Allow to read and write data encrypted by `key`, but only through `services` such as `s3`."""
    via = [f"{service}.{Aws.REGION}.{Aws.URL_SUFFIX}" for service in services]
    actions = ["kms:Decrypt", "kms:GenerateDataKey"]
    return allow("UseKey", actions, [key.key_arn], {"StringEquals": {"kms:ViaService": via}})


def by_alerting_services(
    stack: Stack, actions: Sequence[str], resource: str
) -> list[iam.PolicyStatement]:
    """Let Budgets and CloudWatch, which have no role, do `actions` for this account's budgets and
    alarms."""
    arn, account = f"arn:{stack.partition}", stack.account
    return [
        iam.PolicyStatement(
            sid=f"{service.capitalize()}MayPublish",
            principals=[iam.ServicePrincipal(f"{service}.amazonaws.com")],
            actions=actions,
            resources=[resource],
            conditions={
                "StringEquals": {"aws:SourceAccount": account},
                "ArnLike": {"aws:SourceArn": sources},
            },
        )
        for service, sources in (
            ("budgets", f"{arn}:budgets::{account}:*"),
            ("cloudwatch", f"{arn}:cloudwatch:{stack.region}:{account}:alarm:*"),
        )
    ]
