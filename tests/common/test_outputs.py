import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto import mock_aws

from common.names import NAME_VARIABLE
from common.outputs import NotDeployedError, check_region, stack_output
from costs.__main__ import main as costs
from data_prep.__main__ import main as data_prep
from serving.predict import main as predict


@pytest.fixture
def _aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.delenv("AWS_REGION", raising=False)
    monkeypatch.delenv(NAME_VARIABLE, raising=False)
    with mock_aws():
        yield


def deploy(outputs: dict[str, Any], stack: str = "bin-counter-DataStack") -> None:
    template = {"Resources": {"Any": {"Type": "AWS::SNS::Topic"}}, "Outputs": outputs}
    boto3.client("cloudformation").create_stack(StackName=stack, TemplateBody=json.dumps(template))


@pytest.mark.usefixtures("_aws")
def test_an_output_of_a_deployed_stack_is_read() -> None:
    deploy({"Other": {"Value": "no"}, "BucketName": {"Value": "bins"}})
    assert stack_output("DataStack", "BucketName") == "bins"


@pytest.mark.usefixtures("_aws")
def test_of_two_copies_the_environment_names_one(monkeypatch: pytest.MonkeyPatch) -> None:
    deploy({"BucketName": {"Value": "bins"}})
    deploy({"BucketName": {"Value": "bins-of-another"}}, "bins-dev-DataStack")
    assert stack_output("DataStack", "BucketName") == "bins"
    monkeypatch.setenv(NAME_VARIABLE, "bins-dev")
    assert stack_output("DataStack", "BucketName") == "bins-of-another"
    monkeypatch.setenv(NAME_VARIABLE, "bins-test")
    with pytest.raises(NotDeployedError, match=r"bins-test-DataStack is not deployed here: .* set"):
        stack_output("DataStack", "BucketName")


@pytest.mark.usefixtures("_aws")
def test_a_stack_that_is_not_deployed_says_what_to_run() -> None:
    with pytest.raises(NotDeployedError, match="run `npx cdk deploy DataStack`"):
        stack_output("DataStack", "BucketName")


@pytest.mark.usefixtures("_aws")
def test_an_output_that_an_older_stack_lacks_is_named() -> None:
    deploy({"Other": {"Value": "no"}})
    with pytest.raises(NotDeployedError, match="no output BucketName"):
        stack_output("DataStack", "BucketName")


@pytest.mark.usefixtures("_aws")
def test_two_regions_are_one_line_before_anything_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    monkeypatch.setattr(boto3, "client", lambda name: pytest.fail("asked"))
    with pytest.raises(NotDeployedError, match="eu-west-1 and AWS_DEFAULT_REGION"):
        stack_output("DataStack", "BucketName")


@pytest.mark.usefixtures("_aws")
def test_a_profile_has_a_region_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config").write_text("[default]\nregion = us-east-1\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    with pytest.raises(NotDeployedError, match="eu-west-1 and the profile's us-east-1: run `exp"):
        check_region()
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    check_region()


@pytest.mark.parametrize(
    "command",
    [
        (data_prep, "upload"),
        (data_prep, "all"),
        (data_prep, "weights"),
        (data_prep, "verify"),
        (costs, "compare"),
        (costs, "actual", "r1"),
        (costs, "accuracy"),
        (predict, "bin.jpg"),
    ],
    ids=lambda command: " ".join(command[1:]),
)
@pytest.mark.usefixtures("_aws")
def test_so_are_they_where_no_stack_has_to_be_found(
    command: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    monkeypatch.setattr(
        "botocore.client.BaseClient._make_api_call", lambda *_: pytest.fail("asked")
    )
    main, *words = command
    given = ["--endpoint", "ours"] if main is predict else ["--bucket", "ours"]
    with pytest.raises(SystemExit) as end:
        sys.exit(main([*words, *given]))
    message = end.value.code if main is predict else capsys.readouterr().err
    assert end.value.code != 0
    assert "AWS_REGION is eu-west-1 and AWS_DEFAULT_REGION" in str(message)


@pytest.mark.usefixtures("_aws")
def test_one_region_under_two_names_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    deploy({"BucketName": {"Value": "bins"}})
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    assert stack_output("DataStack", "BucketName") == "bins"
