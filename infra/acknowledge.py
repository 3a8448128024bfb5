"""Answers to findings of cdk-nag's AwsSolutions rules, each with its reason."""

from collections.abc import Sequence

from aws_cdk import Acknowledgment, Stack, Validations
from aws_cdk import aws_s3 as s3
from constructs import Construct


def acknowledge(scope: Construct, finding: str, reason: str) -> None:
    """Accept one finding, such as `VPC7` or `IAM5[Resource::*]`, on everything in `scope`."""
    Validations.of(scope).acknowledge(Acknowledgment(id=f"AwsSolutions-{finding}", reason=reason))


def acknowledge_objects(
    scope: Construct, bucket: s3.IBucket, keys: Sequence[str], reason: str
) -> None:
    """Accept that policies in `scope` name objects of another stack's `bucket` by wildcard."""
    # cdk-nag writes the bucket's ARN as the name of the export that carries it between stacks.
    imported = Stack.of(scope).resolve(Stack.of(bucket).export_value(bucket.bucket_arn))
    for key in keys:
        acknowledge(scope, f"IAM5[Resource::{imported['Fn::ImportValue']}/{key}]", reason)
