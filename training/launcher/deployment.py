"""The deployed bucket and Auto Scaling groups, used with the launcher's role."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import boto3
import botocore.session
from botocore.credentials import AssumeRoleCredentialFetcher, DeferredRefreshableCredentials

from common.choices import Purchase
from common.outputs import stack_output
from common.run_record import RunRecord
from training.runs.fallback import FALLBACK, book_end, book_fallback, cancel_fallback

if TYPE_CHECKING:
    from mypy_boto3_autoscaling import AutoScalingClient
    from mypy_boto3_s3 import S3Client


class LaunchError(RuntimeError):
    """The command cannot be carried out; the message is one line."""


@dataclass(frozen=True, kw_only=True)
class Groups:
    """The combined state of the Auto Scaling groups."""

    desired: int  # sum of their desired capacities
    instance_ids: tuple[str, ...]
    instance_types: tuple[str, ...]  # that the first may start
    purchases: tuple[Purchase, ...]  # of the first and, with spot_first, of the fallback
    suspended: tuple[tuple[str, str], ...]  # pairs of a group and a suspended process

    @property
    def idle(self) -> bool:
        return not self.desired and not self.instance_ids


class Deployment:
    """The data bucket and the Auto Scaling groups of one account."""

    def __init__(self, session: boto3.Session, *, bucket: str, groups: Sequence[str]) -> None:
        """`groups` has the group that a launch starts and, with spot_first, the fallback's."""
        self.session = session
        self.bucket = bucket
        self.group_names = groups
        self.s3: S3Client = session.client("s3")
        self._autoscaling: AutoScalingClient = session.client("autoscaling")

    @classmethod
    def connect(cls) -> "Deployment":
        """Assume the launcher's role; raises NotDeployedError without the stacks."""
        return cls(
            launcher_session(stack_output("TrainStack", "LauncherRoleArn")),
            bucket=stack_output("DataStack", "BucketName"),
            groups=stack_output("TrainStack", "GroupNames").split(","),
        )

    @property
    def group_label(self) -> str:
        """The groups' names for messages, such as `group a` or `groups a and b`."""
        names = " and ".join(self.group_names)
        return f"groups {names}" if len(self.group_names) > 1 else f"group {names}"

    def record(self, run_id: str) -> RunRecord:
        return RunRecord(self.s3, self.bucket, run_id)

    def run_ids(self) -> list[str]:
        """Return the ids of all runs, the newest first.

        They begin with the date. Other prefixes belong to machines without a run and to searches
        on SageMaker.
        """
        pages = self.s3.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix="runs/", Delimiter="/"
        )
        prefixes = (item["Prefix"] for page in pages for item in page.get("CommonPrefixes", []))
        runs = {prefix.split("/")[1] for prefix in prefixes}
        return sorted((run for run in runs if run[0].isdigit()), reverse=True)

    def groups(self) -> Groups:
        """Describe the groups; raises LaunchError if one has been deleted."""
        described = self._autoscaling.describe_auto_scaling_groups(
            AutoScalingGroupNames=list(self.group_names)
        )["AutoScalingGroups"]
        found = {group["AutoScalingGroupName"]: group for group in described}
        missing = ", ".join(name for name in self.group_names if name not in found)
        if missing:
            raise LaunchError(f"group {missing} is missing: run `npx cdk deploy TrainStack` again")
        groups = [found[name] for name in self.group_names]
        policies = [group["MixedInstancesPolicy"] for group in groups]
        return Groups(
            desired=sum(group["DesiredCapacity"] for group in groups),
            instance_ids=tuple(
                instance["InstanceId"] for group in groups for instance in group["Instances"]
            ),
            instance_types=tuple(
                override["InstanceType"] for override in policies[0]["LaunchTemplate"]["Overrides"]
            ),
            purchases=tuple(
                "on_demand"
                if policy["InstancesDistribution"]["OnDemandPercentageAboveBaseCapacity"]
                else "spot"
                for policy in policies
            ),
            suspended=tuple(
                (group["AutoScalingGroupName"], each["ProcessName"])
                for group in groups
                for each in group["SuspendedProcesses"]
            ),
        )

    def last_activity(self) -> str:
        """Return the groups' status message of the last scaling activity, in one line."""
        activities = [
            activity
            for name in self.group_names
            for activity in self._autoscaling.describe_scaling_activities(
                AutoScalingGroupName=name, MaxRecords=1
            )["Activities"]
        ]
        if not activities:
            return ""
        last = max(activities, key=lambda activity: activity["StartTime"])
        message = last.get("StatusMessage") or last.get("Description", "")
        return " ".join(message.split())

    def book_end(self, deadline: datetime) -> None:
        """Book that the groups go to 0 at `deadline`, in whole seconds, and verify each booking.

        Raises LaunchError if a booking does not exist.
        """
        for name in self.group_names:
            booking = book_end(self._autoscaling, name, deadline)
            actions = self._autoscaling.describe_scheduled_actions(
                AutoScalingGroupName=name, ScheduledActionNames=[booking]
            )["ScheduledUpdateGroupActions"]
            booked = [(each["DesiredCapacity"], each["StartTime"]) for each in actions]
            if booked != [(0, deadline)]:
                raise LaunchError(
                    f"the end at {deadline:%H:%M} UTC could not be booked: nothing was started"
                )

    def book_fallback(self, minutes: float, deadline: datetime) -> None:
        """Book the start of an on-demand machine in `minutes`."""
        for name in self.group_names[1:]:
            book_fallback(self._autoscaling, name, minutes=minutes, deadline=deadline)

    def cancel_fallback(self) -> None:
        for name in self.group_names[1:]:
            cancel_fallback(self._autoscaling, name)

    def fallback_time(self) -> datetime | None:
        """Return the booked start of an on-demand machine, or None."""
        for name in self.group_names[1:]:
            actions = self._autoscaling.describe_scheduled_actions(
                AutoScalingGroupName=name, ScheduledActionNames=[FALLBACK]
            )["ScheduledUpdateGroupActions"]
            if actions:
                return actions[0]["StartTime"]
        return None

    def suspend_az_rebalance(self) -> None:
        """Keep the groups from ending a machine to balance zones; CloudFormation cannot do so."""
        for name in self.group_names:
            self._autoscaling.suspend_processes(
                AutoScalingGroupName=name, ScalingProcesses=["AZRebalance"]
            )

    def start_machine(self) -> None:
        self._set_desired(self.group_names[0], 1)

    def end_machines(self) -> None:
        """Cancel the fallback and set the groups to 0; a failed call does not stop the others."""
        with ExitStack() as steps:  # in reverse order
            for name in reversed(self.group_names):
                steps.callback(self._set_desired, name, 0)
            steps.callback(self.cancel_fallback)

    def _set_desired(self, name: str, machines: int) -> None:
        self._autoscaling.set_desired_capacity(AutoScalingGroupName=name, DesiredCapacity=machines)


def launcher_session(role_arn: str) -> boto3.Session:
    """Return a session with the launcher's role, whose credentials renew themselves."""
    user = botocore.session.get_session()
    fetcher = AssumeRoleCredentialFetcher(
        user.create_client,
        user.get_credentials(),
        role_arn,
        extra_args={"RoleSessionName": "launch"},
    )
    launcher = botocore.session.get_session()
    # botocore has no public API for a session with such credentials.
    launcher._credentials = DeferredRefreshableCredentials(  # type: ignore[attr-defined]
        fetcher.fetch_credentials, "assume-role"
    )
    return boto3.Session(botocore_session=launcher)
