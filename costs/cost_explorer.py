"""What AWS bills, by service, for everything that carries the project tag: Cost Explorer."""

from collections import defaultdict
from datetime import date, timedelta
from typing import TYPE_CHECKING

from botocore.exceptions import ClientError

from common.names import PROJECT_KEY, chosen_name

if TYPE_CHECKING:
    from mypy_boto3_ce import CostExplorerClient

NOT_ALLOWED = {"AccessDeniedException", "AccessDenied", "UnauthorizedOperation"}


def billed(client: "CostExplorerClient", first: date, last: date) -> tuple[dict[str, float], str]:
    """Return US dollars by service for the days `first` to `last`, and a remark for the user.

    AWS charges $0.01 for the request. Without permission, or before AWS has the data, there are no
    services, and the remark says why. Source: Cost Explorer's GetCostAndUsage.
    """
    name = chosen_name()
    days = f"{first} to {last}" if first != last else str(first)
    try:
        answer = client.get_cost_and_usage(
            TimePeriod={"Start": str(first), "End": str(last + timedelta(days=1))},
            Granularity="DAILY",
            Metrics=["UnblendedCost"],
            GroupBy=[{"Type": "DIMENSION", "Key": "SERVICE"}],
            Filter={"Tags": {"Key": PROJECT_KEY, "Values": [name]}},
        )
    except ClientError as error:
        code = error.response["Error"]["Code"]
        if code in NOT_ALLOWED:
            return {}, "Cost Explorer: you lack the permission ce:GetCostAndUsage"
        if code == "DataUnavailableException":
            return {}, f"Cost Explorer: no data for {days} yet; AWS has it about a day later"
        raise
    services: dict[str, float] = defaultdict(float)
    for day in answer["ResultsByTime"]:
        for group in day.get("Groups", []):
            services[group["Keys"][0]] += float(group["Metrics"]["UnblendedCost"]["Amount"])
    if not services:
        return {}, (
            f"Cost Explorer: nothing with the tag {PROJECT_KEY}={name} on {days}; it takes "
            "about a day, and the tag must be active: `python -m costs tags`"
        )
    return services, f"Cost Explorer, {days}, whole days, tag {PROJECT_KEY}={name}"
