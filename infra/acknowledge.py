"""Answers to findings of cdk-nag, checkov and cfn-lint, each with its reason."""

import re
from collections.abc import Sequence

from aws_cdk import Acknowledgment, CfnResource, Stack, Validations
from aws_cdk import aws_s3 as s3
from constructs import Construct, IConstruct

AWS_KEY = "AWS's own key encrypts it and costs nothing; with kms=customer, one of yours does."
INLINE = "The policy belongs to this role alone and is deleted with it."  # for IAMNoInlinePolicy


def acknowledge(scope: IConstruct, findings: str | Sequence[str], reason: str) -> None:
    """Accept one finding, or several with the same `reason`, in `scope`.

    `VPC7` and `IAM5[Resource::*]` are rules of cdk-nag's AwsSolutions, `VPCFlowLogsEnabled` is one
    of its NIST 800-53; these are accepted for everything in `scope`. `CKV_AWS_18` is a rule of
    checkov and `W3005` one of cfn-lint; these are accepted for the resource of `scope` alone.
    """
    for finding in [findings] if isinstance(findings, str) else findings:
        if finding.startswith("CKV"):
            resource = _resource(scope)
            skips = (resource.get_metadata("checkov") or {"skip": []})["skip"]
            skips = [*skips, {"id": finding, "comment": reason}]
            resource.add_metadata("checkov", {"skip": skips})
        elif re.fullmatch(r"[EIW]\d{4}", finding):
            ignored = {"config": {"ignore_checks": [finding]}, "comment": reason}
            _resource(scope).add_metadata("cfn-lint", ignored)
        else:
            pack = "AwsSolutions" if re.match(r"[A-Z]+\d+(\[|$)", finding) else "NIST.800.53.R5"
            Validations.of(scope).acknowledge(Acknowledgment(id=f"{pack}-{finding}", reason=reason))


def acknowledge_objects(
    scope: Construct, bucket: s3.IBucket, keys: Sequence[str], reason: str
) -> None:
    """Accept wildcards for objects of another stack's `bucket` in the policies of `scope`."""
    # In place of the bucket's ARN, cdk-nag has the name of the export that passes it on.
    imported = Stack.of(scope).resolve(Stack.of(bucket).export_value(bucket.bucket_arn))
    for key in keys:
        acknowledge(scope, f"IAM5[Resource::{imported['Fn::ImportValue']}/{key}]", reason)


def _resource(scope: IConstruct) -> CfnResource:
    """The resource of `scope`, whose metadata checkov and cfn-lint read."""
    resource = scope if isinstance(scope, CfnResource) else scope.node.default_child
    assert isinstance(resource, CfnResource), f"{scope.node.path} is not one resource"
    return resource
