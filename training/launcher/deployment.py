"""What is deployed, seen with the launcher's role: the bucket, and the groups that train."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import boto3
import botocore.session
from botocore.credentials import AssumeRoleCredentialFetcher, DeferredRefreshableCredentials

from common.outputs import stack_output
from common.run_record import Purchase, RunRecord
from training.runs.fallback import FALLBACK, book_end, cancel, put_off

if TYPE_CHECKING:
    from mypy_boto3_autoscaling import AutoScalingClient
    from mypy_boto3_s3 import S3Client


class LaunchError(RuntimeError):
    """What was asked for cannot be done; the message is one line."""


@dataclass(frozen=True, kw_only=True)
class Groups:
    """The Auto Scaling groups at one moment, together."""

    desired: int
    instance_ids: tuple[str, ...]
    instance_types: tuple[str, ...]  # that they may start
    purchases: tuple[Purchase, ...]  # of the first and, with spot_first, of the fallback
    suspended: tuple[tuple[str, str], ...]  # group, and a process of it that somebody halted

    @property
    def idle(self) -> bool:
        return not self.desired and not self.instance_ids


class Deployment:
    """The data bucket and the groups of one account."""

    def __init__(self, session: boto3.Session, *, bucket: str, groups: Sequence[str]) -> None:
        """`groups`: the one that a launch starts and, with spot_first, that of the fallback."""
        self.session = session
        self.bucket = bucket
        self.group_names = groups
        self.s3: S3Client = session.client("s3")
        self._autoscaling: AutoScalingClient = session.client("autoscaling")

    @classmethod
    def connect(cls) -> "Deployment":
        """Raises NotDeployedError without the stacks."""
        return cls(
            launcher_session(stack_output("TrainStack", "LauncherRoleArn")),
            bucket=stack_output("DataStack", "BucketName"),
            groups=stack_output("TrainStack", "GroupNames").split(","),
        )

    @property
    def named_groups(self) -> str:
        """For messages: `group a`, or `groups a and b`."""
        names = " and ".join(self.group_names)
        return f"groups {names}" if len(self.group_names) > 1 else f"group {names}"

    def record(self, run_id: str) -> RunRecord:
        return RunRecord(self.s3, self.bucket, run_id)

    def run_ids(self) -> list[str]:
        """Every run that has a record, the newest first.

        Their ids begin with the date; beside them are the logs of machines without a run, and what
        the searches on SageMaker left.
        """
        pages = self.s3.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix="runs/", Delimiter="/"
        )
        prefixes = (item["Prefix"] for page in pages for item in page.get("CommonPrefixes", []))
        runs = {prefix.split("/")[1] for prefix in prefixes}
        return sorted((run for run in runs if run[0].isdigit()), reverse=True)

    def groups(self) -> Groups:
        """Raises LaunchError when one is gone."""
        described = self._autoscaling.describe_auto_scaling_groups(
            AutoScalingGroupNames=list(self.group_names)
        )["AutoScalingGroups"]
        found = {group["AutoScalingGroupName"]: group for group in described}
        gone = ", ".join(name for name in self.group_names if name not in found)
        if gone:
            raise LaunchError(f"group {gone} is gone: run `npx cdk deploy TrainStack` again")
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
        """What the groups say of the last attempt to start or end a machine, in one line."""
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
        said = last.get("StatusMessage") or last.get("Description", "")
        return " ".join(said.split())

    def book_end(self, deadline: datetime) -> None:
        """Have the groups go to 0 at the deadline, whatever happens, and read that back.

        `deadline` is in whole seconds, as AWS keeps it. Raises LaunchError when a booking
        is not there.
        """
        for name in self.group_names:
            booking = book_end(self._autoscaling, name, deadline)
            actions = self._autoscaling.describe_scheduled_actions(
                AutoScalingGroupName=name, ScheduledActionNames=[booking]
            )["ScheduledUpdateGroupActions"]
            booked = [(each["DesiredCapacity"], each["StartTime"]) for each in actions]
            if booked != [(0, deadline)]:
                raise LaunchError(
                    f"the end at {deadline:%H:%M} UTC could not be booked, nothing started"
                )

    def book_fallback(self, minutes: float, deadline: datetime) -> None:
        """Have an on-demand machine start in `minutes`, unless a machine puts that off."""
        for name in self.group_names[1:]:
            put_off(self._autoscaling, name, minutes=minutes, deadline=deadline)

    def cancel_fallback(self) -> None:
        for name in self.group_names[1:]:
            cancel(self._autoscaling, name)

    def fallback_time(self) -> datetime | None:
        """When an on-demand machine is booked to start; None when none is."""
        for name in self.group_names[1:]:
            actions = self._autoscaling.describe_scheduled_actions(
                AutoScalingGroupName=name, ScheduledActionNames=[FALLBACK]
            )["ScheduledUpdateGroupActions"]
            if actions:
                return actions[0]["StartTime"]
        return None

    def keep_zones(self) -> None:
        """Never end a machine at work to even out the zones; CloudFormation cannot say so."""
        for name in self.group_names:
            self._autoscaling.suspend_processes(
                AutoScalingGroupName=name, ScalingProcesses=["AZRebalance"]
            )

    def start_machine(self) -> None:
        self._set_desired(self.group_names[0], 1)

    def end_machines(self) -> None:
        """No machine any more, and none that is booked to come; one refusal stops no other."""
        with ExitStack() as steps:  # the last one first
            for name in reversed(self.group_names):
                steps.callback(self._set_desired, name, 0)
            steps.callback(self.cancel_fallback)

    def _set_desired(self, name: str, machines: int) -> None:
        self._autoscaling.set_desired_capacity(AutoScalingGroupName=name, DesiredCapacity=machines)


def launcher_session(role_arn: str) -> boto3.Session:
    """A session with the launcher's role, renewed each hour for as long as it is used."""
    user = botocore.session.get_session()
    fetcher = AssumeRoleCredentialFetcher(
        user.create_client,
        user.get_credentials(),
        role_arn,
        extra_args={"RoleSessionName": "launch"},
    )
    launcher = botocore.session.get_session()
    # botocore has no public way to hand a session credentials that renew themselves.
    launcher._credentials = DeferredRefreshableCredentials(  # type: ignore[attr-defined]
        fetcher.fetch_credentials, "assume-role"
    )
    return boto3.Session(botocore_session=launcher)
