import json
from typing import TYPE_CHECKING

import boto3
import pytest
from botocore.exceptions import NoCredentialsError
from botocore.stub import Stubber

from costs.activate_tags import activate_tags
from tests.support.synthesized import Template

if TYPE_CHECKING:
    from mypy_boto3_ce import CostExplorerClient

REQUEST = {
    "CostAllocationTagsStatus": [
        {"TagKey": "project", "Status": "Active"},
        {"TagKey": "part", "Status": "Active"},
    ]
}


@pytest.fixture
def cost_explorer(monkeypatch: pytest.MonkeyPatch) -> "CostExplorerClient":
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    return boto3.client("ce", region_name="us-east-1")


def test_both_tags_are_activated(cost_explorer: "CostExplorerClient") -> None:
    with Stubber(cost_explorer) as stub:
        stub.add_response("update_cost_allocation_tags_status", {"Errors": []}, REQUEST)
        assert activate_tags(cost_explorer).startswith("active: project, part;")
        stub.assert_no_pending_responses()


def test_a_tag_that_aws_has_not_seen_yet_is_told_in_one_line(
    cost_explorer: "CostExplorerClient",
) -> None:
    errors = [
        {"TagKey": "part", "Code": "TagKeysNotFoundException", "Message": "Tag key\n not found"}
    ]
    with Stubber(cost_explorer) as stub:
        stub.add_response("update_cost_allocation_tags_status", {"Errors": errors}, REQUEST)
        with pytest.raises(ValueError, match=r"^not activated: part: .* try again tomorrow$") as e:
            activate_tags(cost_explorer)
    assert "project" not in str(e.value)
    assert "\n" not in str(e.value)


def test_an_account_that_does_not_pay_the_bill_is_told_so(
    cost_explorer: "CostExplorerClient",
) -> None:
    with Stubber(cost_explorer) as stub:
        stub.add_client_error(
            "update_cost_allocation_tags_status",
            "ValidationException",
            "Linked account doesn't have access to cost allocation tags.",
        )
        with pytest.raises(ValueError, match=r"Linked account.*only the account that pays"):
            activate_tags(cost_explorer)


def test_missing_credentials_are_not_taken_for_the_wrong_account(
    cost_explorer: "CostExplorerClient", monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:
        raise NoCredentialsError

    monkeypatch.setattr(cost_explorer, "update_cost_allocation_tags_status", refuse)
    with pytest.raises(NoCredentialsError):
        activate_tags(cost_explorer)


def test_the_activated_keys_are_those_on_the_stacks(stacks: dict[str, Template]) -> None:
    text = json.dumps(stacks["DataStack"].of_type("AWS::S3::Bucket"))
    for entry in REQUEST["CostAllocationTagsStatus"]:
        assert f'"Key": "{entry["TagKey"]}"' in text
