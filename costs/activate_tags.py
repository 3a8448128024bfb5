"""Cost allocation tags: what makes the bill tell this project from the rest of the account."""

from typing import TYPE_CHECKING

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from common.names import COST_ALLOCATION_KEYS

if TYPE_CHECKING:
    from mypy_boto3_ce import CostExplorerClient


def activate_tags(client: "CostExplorerClient | None" = None) -> str:
    """Have AWS split costs by our tags from now on; returns what to tell the user.

    Raises ValueError, in one line, when AWS knows a tag not yet, or lets only another account do
    it. Source: Cost Explorer's UpdateCostAllocationTagsStatus.
    """
    client = client or boto3.client("ce", region_name="us-east-1")  # the only one that has it
    keys = ", ".join(COST_ALLOCATION_KEYS)
    try:
        answer = client.update_cost_allocation_tags_status(
            CostAllocationTagsStatus=[
                {"TagKey": key, "Status": "Active"} for key in COST_ALLOCATION_KEYS
            ]
        )
    except ClientError as error:
        raise ValueError(
            f"AWS does not let you activate the tags {keys}: {_one_line(error)}; only the account "
            "that pays the bill may, with the permission ce:UpdateCostAllocationTagsStatus"
        ) from error
    except BotoCoreError as error:  # no credentials, no network
        raise ValueError(_one_line(error)) from error
    if answer.get("Errors"):
        refused = "; ".join(f"{error['TagKey']}: {error['Message']}" for error in answer["Errors"])
        raise ValueError(
            f"not activated: {' '.join(refused.split())}; AWS knows a tag about a day after its "
            "first use: try again tomorrow"
        )
    return f"active: {keys}; costs from now on carry them, which shows within a day"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
