"""Requests that AWS would refuse for their form, which boto3 sends and moto takes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
from hypothesis import given
from hypothesis import strategies as st
from moto.core.responses import BaseResponse
from moto.s3.responses import S3Response

from rehearsal.aws.request_check import ViolationList, check_requests, violations


def found(service: str, operation: str, parameters: Any) -> list[str]:
    shape = boto3.client(service, "us-east-1").meta.service_model.operation_model(operation)
    return list(violations(parameters, shape.input_shape, operation))


@pytest.mark.parametrize(
    ("service", "operation", "parameters", "wrong"),
    [
        ("sns", "Publish", {}, "Publish.Message is missing"),
        (
            "sagemaker",
            "DescribeEndpoint",
            {"EndpointName": "a_b"},
            "EndpointName='a_b' does not",
        ),
        ("sagemaker", "DescribeEndpoint", {"EndpointName": "a" * 64}, "EndpointName='aaa"),
        ("sagemaker", "ListModels", {"MaxResults": 0}, "MaxResults=0 is less than 1"),
        ("sagemaker", "ListModels", {"MaxResults": 101}, "MaxResults=101 is more than 100"),
        ("sagemaker", "ListModels", {"SortBy": "Size"}, "SortBy='Size' is none of Name, Creation"),
        (
            "logs",
            "PutLogEvents",
            {"logGroupName": "/a", "logStreamName": "b", "logEvents": []},
            "logEvents=[] is less than 1",
        ),
    ],
)
def test_what_boto3_sends_and_aws_refuses_is_found(
    service: str, operation: str, parameters: Any, wrong: str
) -> None:
    assert any(wrong in each for each in found(service, operation, parameters))


@given(st.from_regex(r"\A[a-zA-Z0-9](-?[a-zA-Z0-9]){0,20}\Z"))
def test_a_name_of_the_pattern_is_let_through(name: str) -> None:
    assert found("sagemaker", "DescribeEndpoint", {"EndpointName": name}) == []


@pytest.fixture
def noted(aws: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], str]:
    for owner, method in ((BaseResponse, "call_action"), (S3Response, "setup_class")):
        monkeypatch.setattr(owner, method, getattr(owner, method))  # put back later
    check_requests(ViolationList(tmp_path / "violations.txt").note)
    return (tmp_path / "violations.txt").read_text


def test_a_request_is_looked_at_on_its_way_to_moto_and_noted_once(
    noted: Callable[[], str],
) -> None:
    ssm = boto3.client("ssm")
    ssm.put_parameter(Name="/model", Value="none", Type="String")
    assert noted() == ""
    for _ in range(2):
        boto3.client("sagemaker").list_models(NameContains="no spaces")
    (line,) = noted().splitlines()
    assert line.startswith("sagemaker:ListModels.NameContains='no spaces' does not match")


def test_a_request_to_s3_with_a_header_that_it_does_not_know_is_noted(
    noted: Callable[[], str],
) -> None:
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket="ours")
    s3.put_object(Bucket="ours", Key="a", Body=b"a", ServerSideEncryption="aws:kms", ACL="private")
    assert noted() == ""
    s3.put_object(Bucket="ours", Key="a", Body=b"a", ServerSideEncryption="aws-kms")
    assert noted().startswith("s3: x-amz-server-side-encryption='aws-kms' is none of AES256, aws:")
