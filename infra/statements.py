"""Policy statements; those on the data bucket are narrower than CDK's `grant_read` gives."""

from collections.abc import Sequence

from aws_cdk import Aws
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_s3 as s3


def allow(sid: str, actions: Sequence[str], resources: Sequence[str]) -> iam.PolicyStatement:
    """Allow `actions` on `resources`."""
    return iam.PolicyStatement(sid=sid, actions=actions, resources=resources)


def list_prefixes(bucket: s3.IBucket, prefixes: Sequence[str]) -> iam.PolicyStatement:
    """Allow to list what is under `prefixes`, such as `runs/*`, and nothing beside them."""
    return iam.PolicyStatement(
        sid="ListPrefixes",
        actions=["s3:ListBucket"],
        resources=[bucket.bucket_arn],
        conditions={"StringLike": {"s3:prefix": list(prefixes)}},
    )


def on_objects(
    sid: str, action: str, bucket: s3.IBucket, keys: Sequence[str]
) -> iam.PolicyStatement:
    """Allow `action` on the objects `keys`; a key may end in `*`."""
    return allow(sid, [action], [bucket.arn_for_objects(key) for key in keys])


def book(sid: str, group_arns: Sequence[str]) -> iam.PolicyStatement:
    """Allow to book changes of groups; their limits as well, but never to more than one machine."""
    statement = allow(sid, ["autoscaling:PutScheduledUpdateGroupAction"], group_arns)
    statement.add_condition(
        "NumericLessThanEqualsIfExists",
        {"autoscaling:MinSize": "0", "autoscaling:MaxSize": "1"},
    )
    return statement


def cancel_bookings(sid: str, group_arns: Sequence[str]) -> iam.PolicyStatement:
    """Allow to delete what is booked for groups."""
    return allow(sid, ["autoscaling:DeleteScheduledAction"], group_arns)


def use_key(key: kms.IKey, services: Sequence[str]) -> iam.PolicyStatement:
    """Allow to read and write what `key` encrypts, through `services` such as `s3` alone."""
    statement = allow("UseKey", ["kms:Decrypt", "kms:GenerateDataKey"], [key.key_arn])
    via = [f"{service}.{Aws.REGION}.{Aws.URL_SUFFIX}" for service in services]
    statement.add_condition("StringEquals", {"kms:ViaService": via})
    return statement
