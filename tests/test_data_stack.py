from typing import Any

import pytest
from synthesized import Template


@pytest.fixture
def template(stacks: dict[str, Template]) -> Template:
    return stacks["DataStack"]


@pytest.fixture
def bucket(template: Template) -> dict[str, Any]:
    (bucket,) = [b for b in template.of_type("AWS::S3::Bucket") if "LoggingConfiguration" in b]
    return bucket


def test_its_one_output_of_ours_is_the_bucket_name(template: Template) -> None:
    outputs = [name for name in template.raw["Outputs"] if not name.startswith("ExportsOutput")]
    assert outputs == ["BucketName"]


def test_versions_are_kept(bucket: dict[str, Any]) -> None:
    assert bucket["VersioningConfiguration"] == {"Status": "Enabled"}


def test_access_is_logged_in_another_bucket(template: Template, bucket: dict[str, Any]) -> None:
    target = bucket["LoggingConfiguration"]["DestinationBucketName"].strip("<>")
    assert "LoggingConfiguration" not in template.resources[target]["Properties"]


def test_no_bucket_is_public_or_unencrypted(template: Template) -> None:
    for bucket in template.of_type("AWS::S3::Bucket"):
        assert set(bucket["PublicAccessBlockConfiguration"].values()) == {True}
        (rule,) = bucket["BucketEncryption"]["ServerSideEncryptionConfiguration"]
        assert rule["ServerSideEncryptionByDefault"] == {"SSEAlgorithm": "AES256"}


def test_every_bucket_refuses_requests_without_tls(template: Template) -> None:
    policies = template.of_type("AWS::S3::BucketPolicy")
    assert len(policies) == len(template.of_type("AWS::S3::Bucket"))
    for policy in policies:
        denials = [s for s in policy["PolicyDocument"]["Statement"] if s["Effect"] == "Deny"]
        assert [(s["Action"], s["Principal"], s["Condition"]) for s in denials] == [
            ("s3:*", {"AWS": "*"}, {"Bool": {"aws:SecureTransport": "false"}})
        ]


def test_only_leftovers_expire(bucket: dict[str, Any]) -> None:
    rules = {rule["Id"]: rule for rule in bucket["LifecycleConfiguration"]["Rules"]}
    expiring = {
        rule["Prefix"]: rule["ExpirationInDays"]
        for rule in rules.values()
        if "ExpirationInDays" in rule
    }
    assert expiring == {"checkpoints/": 14}
    everywhere = rules["Leftovers"]
    assert "Prefix" not in everywhere
    assert everywhere["NoncurrentVersionExpiration"] == {"NoncurrentDays": 30}
    assert everywhere["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 7}


def test_the_data_outlives_the_stack(template: Template) -> None:
    for resource in template.resources.values():
        if resource["Type"] == "AWS::S3::Bucket":
            assert resource["DeletionPolicy"] == "Retain"
            assert resource["UpdateReplacePolicy"] == "Retain"


def test_the_id_of_the_bucket_stays(template: Template) -> None:
    """Another id would be another, empty bucket."""
    assert template.raw["Outputs"]["BucketName"]["Value"] == {"Ref": "DataBucketE6B0FAA8"}
