"""The bucket that holds data sets, weights, runs and models, and the bucket of its access logs."""

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


class DataBucket(Construct):
    """A private, versioned bucket; of what is current, what is only needed for a time expires.

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
        logs = s3.Bucket(
            self,
            "AccessLogs",
            block_public_access=s3.BlockPublicAccess.BLOCK_ALL,
            encryption=s3.BucketEncryption.S3_MANAGED,
            enforce_ssl=True,
            versioned=True,
            lifecycle_rules=[
                LEFTOVERS,
                s3.LifecycleRule(id="OldLogs", expiration=Duration.days(90)),
            ],
            removal_policy=removal_policy,
            auto_delete_objects=delete,
        )
        self.bucket = s3.Bucket(
            self,
            "Bucket",
            block_public_access=s3.BlockPublicAccess.BLOCK_ALL,
            encryption=s3.BucketEncryption.KMS if key else s3.BucketEncryption.S3_MANAGED,
            encryption_key=key,
            bucket_key_enabled=True if key else None,  # one call to KMS for many objects
            enforce_ssl=True,
            versioned=True,
            server_access_logs_bucket=logs,
            server_access_logs_prefix="data/",
            lifecycle_rules=[
                LEFTOVERS,
                s3.LifecycleRule(
                    id="Checkpoints",
                    prefix="checkpoints/",
                    expiration=Duration.days(14),
                    noncurrent_version_expiration=Duration.days(1),
                ),
                *(
                    s3.LifecycleRule(
                        id=id,
                        prefix=prefix,
                        expiration=Duration.days(14),
                        noncurrent_version_expiration=Duration.days(1),
                    )
                    for id, prefix in (("Preparations", "preparing/"), ("Jobs", "jobs/"))
                ),
                s3.LifecycleRule(
                    id="Captures",
                    prefix="captured/",
                    expiration=Duration.days(30),
                    noncurrent_version_expiration=Duration.days(1),
                ),
                # A running machine renews its lease every few seconds: each leaves a version.
                s3.LifecycleRule(
                    id="Leases",
                    prefix="control/",
                    noncurrent_version_expiration=Duration.days(1),
                ),
            ],
            removal_policy=removal_policy,
            auto_delete_objects=delete,
        )
        acknowledge(
            self,
            "S3BucketReplicationEnabled",
            "A copy in another region doubles the cost of what can be downloaded or trained again.",
        )
        acknowledge(logs, "CKV_AWS_18", "Logging access to the logs would log itself for ever.")
        acknowledge(
            logs, "S3DefaultEncryptionKMS", "S3 writes access logs only where its own key encrypts."
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
                "The CDK writes it; CloudFormation calls it once and waits for the answer.",
            )
