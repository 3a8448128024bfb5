"""What the bill says of some days, where we may ask and AWS knows."""

from collections.abc import Iterator
from datetime import date
from typing import TYPE_CHECKING

import boto3
import pytest
from botocore.exceptions import ClientError
from botocore.stub import Stubber

from costs.cost_explorer import billed

if TYPE_CHECKING:
    from mypy_boto3_ce import CostExplorerClient

FIRST, LAST = date(2026, 11, 20), date(2026, 11, 21)


@pytest.fixture
def ce() -> Iterator[tuple["CostExplorerClient", Stubber]]:
    client = boto3.client("ce", region_name="us-east-1")
    with Stubber(client) as stub:
        yield client, stub
        stub.assert_no_pending_responses()


def group(service: str, amount: str) -> dict[str, object]:
    return {"Keys": [service], "Metrics": {"UnblendedCost": {"Amount": amount, "Unit": "USD"}}}


def test_the_days_of_a_service_add_up(ce: tuple["CostExplorerClient", Stubber]) -> None:
    client, stub = ce
    ec2, s3 = "Amazon Elastic Compute Cloud - Compute", "Amazon Simple Storage Service"
    days = [{"Groups": [group(ec2, "0.007"), group(s3, "0.001")]}, {"Groups": [group(ec2, "0.5")]}]
    asked = {
        "TimePeriod": {"Start": "2026-11-20", "End": "2026-11-22"},  # the end is not included
        "Granularity": "DAILY",
        "Metrics": ["UnblendedCost"],
        "GroupBy": [{"Type": "DIMENSION", "Key": "SERVICE"}],
        "Filter": {"Tags": {"Key": "project", "Values": ["bin-counter"]}},
    }
    stub.add_response("get_cost_and_usage", {"ResultsByTime": days}, asked)
    services, remark = billed(client, FIRST, LAST)
    assert services == pytest.approx({ec2: 0.507, s3: 0.001})
    assert "2026-11-20 to 2026-11-21, whole days, tag project=bin-counter" in remark


def test_days_without_anything_of_ours_say_what_may_be_missing(
    ce: tuple["CostExplorerClient", Stubber],
) -> None:
    client, stub = ce
    stub.add_response("get_cost_and_usage", {"ResultsByTime": [{"Groups": []}]})
    services, remark = billed(client, FIRST, FIRST)
    assert services == {}
    assert "on 2026-11-20" in remark
    assert "`python -m costs tags`" in remark


@pytest.mark.parametrize(
    ("code", "message"),
    [("AccessDeniedException", "lack the permission"), ("DataUnavailableException", "no data")],
)
def test_no_permission_and_no_data_are_remarks(
    code: str, message: str, ce: tuple["CostExplorerClient", Stubber]
) -> None:
    client, stub = ce
    stub.add_client_error("get_cost_and_usage", code)
    services, remark = billed(client, FIRST, LAST)
    assert services == {}
    assert message in remark


def test_another_refusal_is_not_hidden(ce: tuple["CostExplorerClient", Stubber]) -> None:
    client, stub = ce
    stub.add_client_error("get_cost_and_usage", "LimitExceededException")
    with pytest.raises(ClientError, match="LimitExceeded"):
        billed(client, FIRST, LAST)
