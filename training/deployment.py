"""What is deployed, seen with the launcher's role: the bucket, and the group that trains."""

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import boto3
import botocore.session
from botocore.credentials import AssumeRoleCredentialFetcher, DeferredRefreshableCredentials

from costs.prices import Purchase
from infra.outputs import stack_output
from training.run_record import RunRecord

if TYPE_CHECKING:
    from mypy_boto3_autoscaling import AutoScalingClient
    from mypy_boto3_s3 import S3Client

BOOKING = "end-training"  # one name: a new run's booking replaces the last one's


class LaunchError(RuntimeError):
    """What was asked for cannot be done; the message is one line."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """The Auto Scaling group at one moment."""

    desired: int
    instance_ids: tuple[str, ...]
    instance_types: tuple[str, ...]  # that it may start
    purchase: Purchase
    suspended: tuple[str, ...]  # processes of the group that somebody halted

    @property
    def idle(self) -> bool:
        return not self.desired and not self.instance_ids


class Deployment:
    """The data bucket and the group of one account."""

    def __init__(self, session: boto3.Session, *, bucket: str, group: str) -> None:
        self.session = session
        self.bucket = bucket
        self.group_name = group
        self.s3: S3Client = session.client("s3")
        self._autoscaling: AutoScalingClient = session.client("autoscaling")

    @classmethod
    def connect(cls) -> "Deployment":
        """Raises NotDeployedError without the stacks."""
        return cls(
            launcher_session(stack_output("TrainStack", "LauncherRoleArn")),
            bucket=stack_output("DataStack", "BucketName"),
            group=stack_output("TrainStack", "GroupName"),
        )

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

    def group(self) -> Group:
        """Raises LaunchError when the group is gone."""
        described = self._autoscaling.describe_auto_scaling_groups(
            AutoScalingGroupNames=[self.group_name]
        )["AutoScalingGroups"]
        if not described:
            raise LaunchError(
                f"group {self.group_name} is gone: run `npx cdk deploy TrainStack` again"
            )
        (group,) = described
        policy = group["MixedInstancesPolicy"]
        on_demand = policy["InstancesDistribution"]["OnDemandPercentageAboveBaseCapacity"]
        return Group(
            desired=group["DesiredCapacity"],
            instance_ids=tuple(instance["InstanceId"] for instance in group["Instances"]),
            instance_types=tuple(
                override["InstanceType"] for override in policy["LaunchTemplate"]["Overrides"]
            ),
            purchase="on_demand" if on_demand else "spot",
            suspended=tuple(each["ProcessName"] for each in group["SuspendedProcesses"]),
        )

    def last_activity(self) -> str:
        """What the group says of its last attempt to start or end a machine, in one line."""
        activities = self._autoscaling.describe_scaling_activities(
            AutoScalingGroupName=self.group_name, MaxRecords=1
        )["Activities"]
        if not activities:
            return ""
        said = activities[0].get("StatusMessage") or activities[0].get("Description", "")
        return " ".join(said.split())

    def book_end(self, deadline: datetime) -> None:
        """Have the group go to 0 at the deadline, whatever happens, and read that back.

        `deadline` is in whole seconds, as AWS keeps it. Raises LaunchError when the booking
        is not there.
        """
        self._autoscaling.put_scheduled_update_group_action(
            AutoScalingGroupName=self.group_name,
            ScheduledActionName=BOOKING,
            StartTime=deadline,
            MinSize=0,
            DesiredCapacity=0,
        )
        actions = self._autoscaling.describe_scheduled_actions(
            AutoScalingGroupName=self.group_name, ScheduledActionNames=[BOOKING]
        )["ScheduledUpdateGroupActions"]
        if [(each["DesiredCapacity"], each["StartTime"]) for each in actions] != [(0, deadline)]:
            raise LaunchError(
                f"the end at {deadline:%H:%M} UTC could not be booked, nothing started"
            )

    def keep_zones(self) -> None:
        """Never end a machine at work to even out the zones; CloudFormation cannot say so."""
        self._autoscaling.suspend_processes(
            AutoScalingGroupName=self.group_name, ScalingProcesses=["AZRebalance"]
        )

    def set_desired(self, machines: int) -> None:
        self._autoscaling.set_desired_capacity(
            AutoScalingGroupName=self.group_name, DesiredCapacity=machines
        )


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
