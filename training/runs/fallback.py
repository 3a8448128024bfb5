"""The fallback: the booked start of an on-demand machine, in case no machine works on a run.

The launcher books it, and the machine that works on the run keeps postponing it, so it takes place
however that machine was lost.
"""

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from botocore.exceptions import ClientError

if TYPE_CHECKING:  # the type hints are not on a training machine
    from mypy_boto3_autoscaling import AutoScalingClient

FALLBACK = "fallback"  # name of the scheduled action; infra/user_data.sh cancels it as well
FALLBACK_MINUTES = 20  # without a working machine; the default of `launch --fallback-minutes`
REBOOK_SECONDS = 60.0  # between two postponements by a machine


def book_fallback(
    autoscaling: "AutoScalingClient", group: str, *, minutes: float, deadline: datetime
) -> None:
    """Book or postpone the start of a machine of `group` to `minutes` from now.

    No start is booked after the run's `deadline`. The group's end is booked first: a deployment
    during the run may have created the group, without that booking.
    """
    start = datetime.now(UTC).replace(microsecond=0) + timedelta(minutes=minutes)
    if start >= deadline:
        cancel_fallback(autoscaling, group)
        return
    book_end(autoscaling, group, deadline)
    autoscaling.put_scheduled_update_group_action(
        AutoScalingGroupName=group,
        ScheduledActionName=FALLBACK,
        StartTime=start,
        DesiredCapacity=1,
    )


def book_end(autoscaling: "AutoScalingClient", group: str, deadline: datetime) -> str:
    """Book that `group` goes to 0 at `deadline`, in whole seconds.

    Returns the name of the scheduled action, which is the same for all runs.
    """
    booking = f"end-{group}"
    autoscaling.put_scheduled_update_group_action(
        AutoScalingGroupName=group,
        ScheduledActionName=booking,
        StartTime=deadline,
        MinSize=0,
        DesiredCapacity=0,
    )
    return booking


def cancel_fallback(autoscaling: "AutoScalingClient", group: str) -> None:
    """Cancel the booked start of a machine, if there is one."""
    try:
        autoscaling.delete_scheduled_action(
            AutoScalingGroupName=group, ScheduledActionName=FALLBACK
        )
    except ClientError as error:
        if error.response["Error"]["Code"] != "ValidationError":  # there is none
            raise
