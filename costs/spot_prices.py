"""EC2's past spot prices, by zone."""

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mypy_boto3_ec2 import EC2Client

PriceChange = tuple[datetime, float]  # when a price begins to hold; US dollars an hour


def spot_history(
    ec2: "EC2Client", instance_type: str, start: datetime, end: datetime, zone: str | None = None
) -> dict[str, list[PriceChange]]:
    """Price changes for Linux by zone, oldest first, including the one in force at `start`.

    EC2 keeps 90 days. Source: EC2's DescribeSpotPriceHistory.
    """
    pages = ec2.get_paginator("describe_spot_price_history").paginate(
        InstanceTypes=[instance_type],  # type: ignore[list-item]
        ProductDescriptions=["Linux/UNIX"],
        StartTime=start,
        EndTime=end,
        Filters=[{"Name": "availability-zone", "Values": [zone]}] if zone else [],
    )
    zones: dict[str, list[PriceChange]] = defaultdict(list)
    for page in pages:
        for entry in page["SpotPriceHistory"]:
            zones[entry["AvailabilityZone"]].append((entry["Timestamp"], float(entry["SpotPrice"])))
    return {name: sorted(changes) for name, changes in sorted(zones.items())}


def mean_price(changes: Sequence[PriceChange], start: datetime, end: datetime) -> float:
    """The mean from `start` to `end`, each price weighted by how long it held.

    The first of `changes`, of which there must be one, also counts for the time before it.
    """
    times = [start, *(min(max(time, start), end) for time, _ in changes[1:]), end]
    seconds = (end - start).total_seconds()
    if seconds <= 0:
        return [price for time, price in changes if time <= start or time == changes[0][0]][-1]
    return (
        sum(
            price * (until - since).total_seconds()
            for (_, price), since, until in zip(changes, times, times[1:], strict=False)
        )
        / seconds
    )
