"""Policy statements; those on the data bucket are narrower than CDK's `grant_read` gives."""

from collections.abc import Sequence

from aws_cdk import aws_iam as iam
from aws_cdk import aws_s3 as s3

# Everything that training reads, in the data bucket.
PREFIXES = ("datasets/", "weights/", "runtime/", "control/", "runs/", "checkpoints/")


def allow(sid: str, actions: Sequence[str], resources: Sequence[str]) -> iam.PolicyStatement:
    """Allow `actions` on `resources`."""
    return iam.PolicyStatement(sid=sid, actions=actions, resources=resources)


def list_prefixes(bucket: s3.IBucket, prefixes: Sequence[str]) -> iam.PolicyStatement:
    """Allow to list what is under `prefixes`, and nothing beside them."""
    return iam.PolicyStatement(
        sid="ListPrefixes",
        actions=["s3:ListBucket"],
        resources=[bucket.bucket_arn],
        conditions={"StringLike": {"s3:prefix": [f"{prefix}*" for prefix in prefixes]}},
    )


def on_objects(
    sid: str, action: str, bucket: s3.IBucket, keys: Sequence[str]
) -> iam.PolicyStatement:
    """Allow `action` on the objects `keys`; a key may end in `*`."""
    return allow(sid, [action], [bucket.arn_for_objects(key) for key in keys])
