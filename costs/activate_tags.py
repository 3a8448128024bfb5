"""Cost allocation tags, which set this project apart from the rest of the account on the bill."""

from typing import TYPE_CHECKING

import boto3
from botocore.exceptions import ClientError

from common.command import in_one_line
from common.names import COST_ALLOCATION_KEYS

if TYPE_CHECKING:
    from mypy_boto3_ce import CostExplorerClient


def activate_tags(client: "CostExplorerClient | None" = None) -> str:
    """Have AWS split costs by our tags from now on; returns what to tell the user.

    Raises ValueError when AWS does not know a tag yet, or when only another account may do it.
    Source: Cost Explorer's UpdateCostAllocationTagsStatus.
    """
    client = client or boto3.client("ce", region_name="us-east-1")  # the only region that has it
    keys = ", ".join(COST_ALLOCATION_KEYS)
    try:
        answer = client.update_cost_allocation_tags_status(
            CostAllocationTagsStatus=[
                {"TagKey": key, "Status": "Active"} for key in COST_ALLOCATION_KEYS
            ]
        )
    except ClientError as error:
        raise ValueError(
            f"AWS refuses to activate the tags {keys}: {in_one_line(error).rstrip('.')}; only the "
            "account that pays the bill may do that, with the permission "
            "ce:UpdateCostAllocationTagsStatus"
        ) from error
    if answer.get("Errors"):
        refused = "; ".join(f"{error['TagKey']}: {error['Message']}" for error in answer["Errors"])
        raise ValueError(
            f"not activated: {' '.join(refused.split())}; AWS knows a tag about a day "
            "after its first use: try again tomorrow"
        )
    return f"active: {keys}; costs carry them from now on, which the bill shows within a day"
