"""A dashboard of Billing and Cost Management: EC2 and SageMaker side by side, a day late."""

from typing import Any

from aws_cdk import CfnResource
from constructs import Construct

from common.names import PART_KEY, PROJECT_KEY

# Service names in Cost Explorer and Budgets.
EC2 = ["Amazon Elastic Compute Cloud - Compute"]
DISKS = ["EC2 - Other"]
SAGEMAKER = ["Amazon SageMaker"]

Json = dict[str, Any]


class CostDashboard(Construct):
    """Daily costs of EC2, by purchase option, and of SageMaker; free of charge.

    It belongs to the whole account and is stored in us-east-1, from wherever it is deployed, so
    its name must be unique in the account. aws-cdk-lib has no class for it.
    """

    def __init__(self, scope: Construct, id: str, *, name: str) -> None:
        super().__init__(scope, id)
        CfnResource(
            self,
            "Dashboard",
            type="AWS::BCM::Dashboard",
            properties={
                "Name": name,
                "Description": "EC2 spot beside SageMaker: unblended cost, without credits.",
                "Widgets": [
                    _widget(
                        "EC2 and SageMaker - last 30 days",
                        _daily(_service(EC2 + DISKS + SAGEMAKER), _by("SERVICE")),
                        width=6,
                    ),
                    _widget(
                        "EC2 by purchase option",
                        _daily(_service(EC2), _by("PURCHASE_TYPE")),
                    ),
                    _widget(
                        "SageMaker by usage",
                        _daily(_service(SAGEMAKER), _by("USAGE_TYPE")),
                        offset=3,
                    ),
                    _widget(
                        "This project by part",
                        _daily(_tagged(PROJECT_KEY, name), {"Type": "TAG", "Key": PART_KEY}),
                        description=f"Requires the active tags {PROJECT_KEY} and {PART_KEY}.",
                    ),
                    _widget(
                        "Account by service - last 6 months",
                        _query("MONTHLY", "-P6M", [], _by("SERVICE")),
                        display={"Table": {}},
                        offset=3,
                    ),
                ],
                "Tags": [{"Key": PROJECT_KEY, "Value": name}],
            },
        )


def _widget(
    title: str,
    query: Json,
    *,
    width: int = 3,
    offset: int = 0,
    display: Json | None = None,
    description: str | None = None,
) -> Json:
    """One widget; `width` and `offset` are in sixths of the page."""
    widget = {
        "Title": title,
        "Width": width,
        "HorizontalOffset": offset,
        "Configs": [
            {
                "QueryParameters": {"CostAndUsage": query},
                "DisplayConfig": display or {"Graph": {"UnblendedCost": {"VisualType": "STACK"}}},
            }
        ],
    }
    return widget | ({"Description": description} if description else {})


def _daily(chosen: Json, group: Json) -> Json:
    return _query("DAILY", "-P30D", [chosen], group)


def _query(granularity: str, start: str, chosen: list[Json], group: Json) -> Json:
    """Unblended cost of what matches `chosen`, from `start`, an ISO 8601 duration, until now."""
    credits: Json = {"Dimensions": {"Key": "RECORD_TYPE", "Values": ["Credit", "Refund"]}}
    without_credits: Json = {"Not": credits}
    return {
        "Metrics": ["UnblendedCost"],
        "TimeRange": {
            "StartTime": {"Type": "RELATIVE", "Value": start},
            "EndTime": {"Type": "RELATIVE", "Value": "P0D"},
        },
        "Granularity": granularity,
        "GroupBy": [group],
        "Filter": {"And": [*chosen, without_credits]} if chosen else without_credits,
    }


def _service(names: list[str]) -> Json:
    return {"Dimensions": {"Key": "SERVICE", "Values": names}}


def _tagged(key: str, value: str) -> Json:
    return {"Tags": {"Key": key, "Values": [value]}}


def _by(dimension: str) -> Json:
    return {"Type": "DIMENSION", "Key": dimension}
