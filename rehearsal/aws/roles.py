"""Credentials of the roles that AWS's services take on our behalf."""

from typing import TYPE_CHECKING

import boto3

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


def s3_as_sagemaker(role_arn: str, endpoint: str | None = None) -> "S3Client":
    """S3 with the credentials of a role that SageMaker takes; `endpoint` is moto's, unless the
    environment names it."""
    credentials = boto3.client("sts", endpoint_url=endpoint).assume_role(
        RoleArn=role_arn, RoleSessionName="SageMaker"
    )["Credentials"]
    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=credentials["AccessKeyId"],
        aws_secret_access_key=credentials["SecretAccessKey"],
        aws_session_token=credentials["SessionToken"],
    )
