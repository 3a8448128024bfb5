from pathlib import Path
from typing import Any

import pytest
from aws_cdk import App

from infra.config import Config
from infra.data_stack import DataStack
from infra.model_endpoint import CAPTURED
from tests.support.synthesized import CDK_CONTEXT, Template

# What lies under these is the user's, or cost money to make.
KEPT = ["runs/", "weights/", "datasets/", "runtime/", "control/"]
# What narrows a lifecycle rule, and what one may do to an object that is current.
LIMITS = {"Prefix", "TagFilters", "ObjectSizeGreaterThan", "ObjectSizeLessThan"}
ENDS = {"ExpirationInDays", "ExpirationDate", "Transition", "Transitions"}


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


def test_versions_are_kept(template: Template) -> None:
    for bucket in template.of_type("AWS::S3::Bucket"):
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
    kept_for = {"checkpoints/": 14, "jobs/": 14, "preparing/": 14, f"{CAPTURED}/": 30}
    assert expiring == kept_for
    assert rules["Leases"]["Prefix"] == "control/"
    assert rules["Leases"]["NoncurrentVersionExpiration"] == {"NoncurrentDays": 1}


def test_old_versions_and_incomplete_uploads_expire_everywhere(template: Template) -> None:
    for bucket in template.of_type("AWS::S3::Bucket"):
        rules = {rule["Id"]: rule for rule in bucket["LifecycleConfiguration"]["Rules"]}
        everywhere = rules["Leftovers"]
        assert not LIMITS.intersection(everywhere)
        assert everywhere["NoncurrentVersionExpiration"] == {"NoncurrentDays": 30}
        assert everywhere["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 7}
        assert everywhere["ExpiredObjectDeleteMarker"] is True


@pytest.mark.parametrize("kept", KEPT)
def test_no_rule_ends_what_is_current_of_data_weights_or_runs(
    stacks: dict[str, Template], other_stacks: dict[str, Template], kept: str
) -> None:
    for template in (stacks["DataStack"], other_stacks["DataStack"]):
        (bucket,) = [b for b in template.of_type("AWS::S3::Bucket") if "LoggingConfiguration" in b]
        for rule in bucket["LifecycleConfiguration"]["Rules"]:
            prefix = rule.get("Prefix", "")
            if kept.startswith(prefix) or prefix.startswith(kept):
                assert not ENDS.intersection(rule), rule["Id"]


def test_access_logs_expire(template: Template) -> None:
    (logs,) = [b for b in template.of_type("AWS::S3::Bucket") if "LoggingConfiguration" not in b]
    rules = {rule["Id"]: rule for rule in logs["LifecycleConfiguration"]["Rules"]}
    assert rules["OldLogs"]["ExpirationInDays"] == 90


def test_the_data_outlives_the_stack(template: Template) -> None:
    for resource in template.resources.values():
        if resource["Type"] == "AWS::S3::Bucket":
            assert resource["DeletionPolicy"] == "Retain"
            assert resource["UpdateReplacePolicy"] == "Retain"


def test_the_data_goes_with_the_stack_when_the_user_says_so(
    other_stacks: dict[str, Template],
) -> None:
    template = other_stacks["DataStack"]
    stored = ("AWS::S3::Bucket", "AWS::KMS::Key")
    going = {
        name: resource["DeletionPolicy"]
        for name, resource in template.resources.items()
        if resource["Type"] in stored
    }
    assert going == {
        "CustomerKeyA9FF30A4": "Delete",
        "DataAccessLogsC0C25EE4": "Delete",
        "DataBucketE6B0FAA8": "Delete",
    }
    emptied = {bucket["BucketName"] for bucket in template.of_type("Custom::S3AutoDeleteObjects")}
    assert emptied == {"<DataAccessLogsC0C25EE4>", "<DataBucketE6B0FAA8>"}


def test_a_customer_key_outlives_the_stack_with_the_data(tmp_path: Path) -> None:
    app = App(context=CDK_CONTEXT, outdir=str(tmp_path))
    DataStack(app, "DataStack", config=Config.from_context({"kms": "customer"}))
    app.synth()
    template = Template(tmp_path / "DataStack.template.json")
    (key,) = [r for r in template.resources.values() if r["Type"] == "AWS::KMS::Key"]
    assert key["DeletionPolicy"] == key["UpdateReplacePolicy"] == "Retain"


def test_by_default_nothing_is_deployed_that_empties_a_bucket(template: Template) -> None:
    """Neither Lambda functions nor custom resources: the rehearsal's stand-in cannot make them."""
    types = {resource["Type"] for resource in template.resources.values()}
    assert types == {"AWS::S3::Bucket", "AWS::S3::BucketPolicy"}
