"""The bucket that holds data sets, weights, runs and models, and the bucket of its access logs."""

from typing import Any

from aws_cdk import Duration, RemovalPolicy, Stack
from aws_cdk import aws_kms as kms
from aws_cdk import aws_s3 as s3
from constructs import Construct

from infra.acknowledge import AWS_KEY, acknowledge

LEFTOVERS = s3.LifecycleRule(
    id="Leftovers",
    abort_incomplete_multipart_upload_after=Duration.days(7),
    noncurrent_version_expiration=Duration.days(30),
    expired_object_delete_marker=True,
)


def _expiring(id: str, prefix: str, days: int | None) -> s3.LifecycleRule:
    """Delete objects under `prefix` after `days`, if given, and earlier versions after one."""
    return s3.LifecycleRule(
        id=id,
        prefix=prefix,
        expiration=Duration.days(days) if days else None,
        noncurrent_version_expiration=Duration.days(1),
    )


RULES = [
    LEFTOVERS,
    _expiring("Checkpoints", "checkpoints/", 14),
    _expiring("Preparations", "preparing/", 14),
    _expiring("Jobs", "jobs/", 14),
    _expiring("Captures", "captured/", 30),
    # A running machine renews its lease every few seconds, each time as a new version.
    _expiring("Leases", "control/", None),
]


class DataBucket(Construct):
    """A private, versioned bucket in which temporary objects expire.

    With RemovalPolicy.DESTROY, both buckets are emptied and deleted with the stack.
    """

    def __init__(
        self,
        scope: Construct,
        id: str,
        *,
        key: kms.IKey | None,
        removal_policy: RemovalPolicy,
    ) -> None:
        super().__init__(scope, id)
        delete = removal_policy == RemovalPolicy.DESTROY
        private: dict[str, Any] = {
            "block_public_access": s3.BlockPublicAccess.BLOCK_ALL,
            "enforce_ssl": True,
            "versioned": True,
            "removal_policy": removal_policy,
            "auto_delete_objects": delete,
        }
        old_logs = s3.LifecycleRule(id="OldLogs", expiration=Duration.days(90))
        logs = s3.Bucket(
            self,
            "AccessLogs",
            **private,
            encryption=s3.BucketEncryption.S3_MANAGED,
            lifecycle_rules=[LEFTOVERS, old_logs],
        )
        self.bucket = s3.Bucket(
            self,
            "Bucket",
            **private,
            encryption=s3.BucketEncryption.KMS if key else s3.BucketEncryption.S3_MANAGED,
            encryption_key=key,
            bucket_key_enabled=True if key else None,  # one KMS request for many objects
            server_access_logs_bucket=logs,
            server_access_logs_prefix="data/",
            lifecycle_rules=RULES,
        )
        acknowledge(
            self,
            "S3BucketReplicationEnabled",
            "A copy in another region would double the cost; the contents can be created again.",
        )
        acknowledge(logs, "CKV_AWS_18", "Logging access to the logs would never end.")
        acknowledge(
            logs,
            "S3DefaultEncryptionKMS",
            "S3 delivers access logs only to buckets that its own key encrypts.",
        )
        if not key:
            acknowledge(self.bucket, "S3DefaultEncryptionKMS", AWS_KEY)
        if delete:
            emptying = Stack.of(self).node.find_child(
                "Custom::S3AutoDeleteObjectsCustomResourceProvider"
            )
            acknowledge(
                emptying.node.find_child("Handler"),
                ["CKV_AWS_115", "CKV_AWS_116", "CKV_AWS_117", "W3005"],
                "The CDK generates it; CloudFormation calls it once and waits for the answer.",
            )
