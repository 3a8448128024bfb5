"""The booked start of an on-demand machine, for when no machine works on a run.

The launcher books it and each machine that works on the run puts it off, so that it comes about
however the last machine was lost.
"""

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from botocore.exceptions import ClientError

if TYPE_CHECKING:  # the type hints are not on a training machine
    from mypy_boto3_autoscaling import AutoScalingClient

FALLBACK = "fallback"  # user_data.sh cancels it as well
FALLBACK_MINUTES = 20  # without a machine at work; `launch --fallback-minutes`
PUT_OFF_SECONDS = 60.0  # between two times that a machine puts it off


def put_off(
    autoscaling: "AutoScalingClient", group: str, *, minutes: float, deadline: datetime
) -> None:
    """Have `group` start a machine in `minutes`, or not at all after the run's `deadline`.

    The group's end comes first: a deploy during the run may have made it without one.
    """
    start = datetime.now(UTC).replace(microsecond=0) + timedelta(minutes=minutes)
    if start >= deadline:
        cancel(autoscaling, group)
        return
    book_end(autoscaling, group, deadline)
    autoscaling.put_scheduled_update_group_action(
        AutoScalingGroupName=group,
        ScheduledActionName=FALLBACK,
        StartTime=start,
        DesiredCapacity=1,
    )


def book_end(autoscaling: "AutoScalingClient", group: str, deadline: datetime) -> str:
    """Have `group` go to 0 at `deadline`, whole seconds; returns the name of the booking."""
    booking = f"end-{group}"  # the same for each run: it replaces the last one's
    autoscaling.put_scheduled_update_group_action(
        AutoScalingGroupName=group,
        ScheduledActionName=booking,
        StartTime=deadline,
        MinSize=0,
        DesiredCapacity=0,
    )
    return booking


def cancel(autoscaling: "AutoScalingClient", group: str) -> None:
    """No machine is booked to start, whether one was or not."""
    try:
        autoscaling.delete_scheduled_action(
            AutoScalingGroupName=group, ScheduledActionName=FALLBACK
        )
    except ClientError as error:
        if error.response["Error"]["Code"] != "ValidationError":  # there is none
            raise
