"""What EC2 Auto Scaling does with its machines, where moto only keeps records.

moto's instances are only entries in a list; here each gets a rehearsed machine, a lost one is
replaced, and scheduled actions are carried out when they are due.
"""

import base64
import time
from collections.abc import Callable, Container, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import boto3

from rehearsal.aws.machine import Machine
from rehearsal.aws.metadata_service import Metadata
from rehearsal.aws.processes import END_SECONDS, Processes

if TYPE_CHECKING:
    from mypy_boto3_autoscaling.type_defs import (
        AutoScalingGroupTypeDef,
        ScheduledUpdateGroupActionTypeDef,
    )

NOTICE_SECONDS = 120.0  # as on AWS; the wait ends earlier if the machine shuts down
LOOK_SECONDS = 0.3
SETTLE_SECONDS = 5.0  # from the group's decision to the machine's shutdown, or longer
GRACE_SECONDS = 120.0  # for an orderly shutdown of a machine that EC2 stops
QUIET_SECONDS = 3600.0  # without output; on two cores the export alone is silent for 10 seconds


def _life_cycle(group: "AutoScalingGroupTypeDef") -> str:
    """How the machines of `group` are bought, in the terms of the metadata service."""
    policy = group.get("MixedInstancesPolicy", {})  # moto drops it in an update
    distribution = policy.get("InstancesDistribution", {})
    return "on-demand" if distribution.get("OnDemandPercentageAboveBaseCapacity") else "spot"


class StillRunningError(RuntimeError):
    """A group did not reach its end; the message is one line."""


class RehearsedGroups:
    """The Auto Scaling groups of a stack and the machines that run for them."""

    def __init__(
        self,
        *,
        processes: Processes,
        endpoint: str,
        groups: Sequence[str],
        folder: Path,
        say: Callable[[str], None],
    ) -> None:
        self._processes = processes
        self._autoscaling = boto3.client("autoscaling")
        self._ec2 = boto3.client("ec2")
        self._iam = boto3.client("iam")
        self._sts = boto3.client("sts")
        self._endpoint = endpoint
        self._groups = groups
        self._folder = folder
        self._say = say
        self.machines: dict[str, Machine] = {}  # all that ever started, by instance id
        self._running: dict[str, Machine] = {}
        self._outside: set[str] = set()  # machines that still run although they were replaced
        self._shown: dict[str, int] = {}  # characters of each console that were shown
        self._heard = time.monotonic()  # when a machine last printed something, booted or ended
        self._hold_at = ""  # the event at which machines wait to be interrupted
        self.capacity = {"spot", "on-demand"}  # kinds of machines that are available
        self.settings: dict[str, str] = {}  # added to the environment of each machine

    def run(self, *, interruptions: Sequence[str]) -> None:
        """Run machines until the groups are at 0 and no machine is left.

        The running machine is interrupted at each event of `interruptions` in turn. Raises
        StillRunningError, after ending every machine, when no machine prints anything any more.
        """
        try:
            for event in interruptions:
                self._hold(event)
                machine = self.machine_at(event)
                if machine and not machine.powered_off:
                    self._say(f"interruption notice to {machine.metadata.instance_id} at {event}")
                    self.interrupt(machine)
            self._hold("")
            self.wait_for_end()
        finally:
            self.end_machines()

    def _hold(self, event: str) -> None:
        """Freeze the training of running and later machines at `event`."""
        self._hold_at = event
        for machine in self._running.values():
            machine.hold_at = event

    def wait_for_end(self) -> None:
        """Wait until the groups are at 0 and no machine is left; raises StillRunningError."""
        self._watch(lambda: None)

    def machine_at(self, event: str) -> Machine | None:
        """Wait for a machine to reach `event`; returns the newest, or None if the groups ended.

        Raises StillRunningError when neither happens.
        """

        def newest() -> Machine | None:
            return next((it for it in reversed(self._running.values()) if it.reached(event)), None)

        return self._watch(newest)

    def interrupt(self, machine: Machine) -> None:
        """Give EC2's notice, and end the machine after that."""
        machine.interrupt(NOTICE_SECONDS)
        self._wait_for_power_off(machine, NOTICE_SECONDS)
        self._show_consoles()
        self._lose(machine, "was interrupted")

    def vanish(self, machine: Machine) -> None:
        """End the machine without notice."""
        machine.vanish()
        self._lose(machine, "vanished")

    def replace(self, machine: Machine) -> None:
        """Have the group start another machine while this one continues for now."""
        self._outside.add(machine.metadata.instance_id)
        self._give_up(machine.metadata.instance_id)

    def end_machines(self) -> None:
        for machine in self._running.values():
            machine.end()
        self._running.clear()

    def _watch(self, found: Callable[[], Machine | None]) -> Machine | None:
        """Act as the service until a machine is found or none is left."""
        self._heard = time.monotonic()
        while time.monotonic() < self._heard + QUIET_SECONDS:
            self._carry_out_bookings()
            instances = self._instances()
            self._start_new(instances)
            self._show_consoles()
            machine = found()  # first, as a machine may power off right after its event
            if machine:
                return machine
            self._end_stopped(instances)
            if not (instances or self._running):
                return None
            time.sleep(LOOK_SECONDS)
        quiet = f"no machine has printed anything for {QUIET_SECONDS:.0f} s"
        raise StillRunningError(f"a group still runs, but {quiet}: see {self._folder}")

    def states(self) -> dict[str, int]:
        """The desired capacity, and how many instances the account has running."""
        reservations = self._ec2.describe_instances(
            Filters=[{"Name": "instance-state-name", "Values": ["pending", "running"]}]
        )["Reservations"]
        instances = sum(len(reservation["Instances"]) for reservation in reservations)
        desired = sum(group["DesiredCapacity"] for group in self._describe())
        return {"desired": desired, "instances": instances}

    def _show_consoles(self) -> None:
        """Show the complete lines that the running machines printed since the last time."""
        for instance_id, machine in self._running.items():
            text = machine.console.read_text(errors="replace")
            lines, _, _ = text[self._shown.get(instance_id, 0) :].rpartition("\n")
            if lines:
                self._heard = time.monotonic()
                self._shown[instance_id] = self._shown.get(instance_id, 0) + len(lines) + 1
                for line in lines.splitlines():
                    self._say(f"  {instance_id[:6]} │ {line}")

    def _describe(self) -> list["AutoScalingGroupTypeDef"]:
        return self._autoscaling.describe_auto_scaling_groups(
            AutoScalingGroupNames=list(self._groups)
        )["AutoScalingGroups"]

    def _instances(self) -> dict[str, "AutoScalingGroupTypeDef"]:
        """The group of each instance, by its id."""
        return {
            instance["InstanceId"]: group
            for group in self._describe()
            for instance in group["Instances"]
        }

    def _start_new(self, instances: dict[str, "AutoScalingGroupTypeDef"]) -> None:
        for instance_id, group in instances.items():
            # Without capacity an instance has an entry in moto but no machine.
            if _life_cycle(group) in self.capacity and instance_id not in self.machines:
                machine = self._boot(instance_id, group)
                machine.hold_at = self._hold_at
                self.machines[instance_id] = self._running[instance_id] = machine
                self._heard = time.monotonic()
                self._say(f"machine {instance_id} boots")

    def _end_stopped(self, instances: Container[str]) -> None:
        for instance_id, machine in list(self._running.items()):
            if machine.powered_off or machine.process.poll() is not None:
                self._lose(machine, "powered off")
            elif instance_id not in instances and instance_id not in self._outside:
                self._wait_for_power_off(machine, SETTLE_SECONDS)
                self._lose(machine, "was ended by the group", GRACE_SECONDS)

    def _wait_for_power_off(self, machine: Machine, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not machine.powered_off and time.monotonic() < end:
            time.sleep(LOOK_SECONDS)

    def _lose(self, machine: Machine, how: str, seconds: float = END_SECONDS) -> None:
        """End what is left of a machine; a group that still lists it gets another."""
        instance_id = machine.metadata.instance_id
        self._running.pop(instance_id).end(seconds)
        self._heard = time.monotonic()
        self._say(f"machine {instance_id} {how}")
        if instance_id in self._instances():
            self._give_up(instance_id)

    def _give_up(self, instance_id: str) -> None:
        self._autoscaling.terminate_instance_in_auto_scaling_group(
            InstanceId=instance_id, ShouldDecrementDesiredCapacity=False
        )

    def _carry_out_bookings(self) -> None:
        for group in self._groups:
            bookings = self._autoscaling.describe_scheduled_actions(AutoScalingGroupName=group)
            for action in bookings["ScheduledUpdateGroupActions"]:
                if action["StartTime"] <= datetime.now(UTC):
                    self._carry_out(group, action)

    def _carry_out(self, group: str, action: "ScheduledUpdateGroupActionTypeDef") -> None:
        self._autoscaling.set_desired_capacity(
            AutoScalingGroupName=group, DesiredCapacity=action["DesiredCapacity"]
        )
        name = action["ScheduledActionName"]
        self._autoscaling.delete_scheduled_action(
            AutoScalingGroupName=group, ScheduledActionName=name
        )
        self._say(f"scheduled action {name} carried out")

    def _boot(self, instance_id: str, group: "AutoScalingGroupTypeDef") -> Machine:
        """Start a machine from the deployed launch template."""
        (member,) = (i for i in group["Instances"] if i["InstanceId"] == instance_id)
        template = group["MixedInstancesPolicy"]["LaunchTemplate"]["LaunchTemplateSpecification"]
        (version,) = self._ec2.describe_launch_template_versions(
            LaunchTemplateId=template["LaunchTemplateId"], Versions=[template["Version"]]
        )["LaunchTemplateVersions"]
        data = version["LaunchTemplateData"]
        metadata = Metadata(
            instance_id=instance_id,
            instance_type=member["InstanceType"],
            zone=member["AvailabilityZone"],
            life_cycle=_life_cycle(group),
            role=self._role(data["IamInstanceProfile"]["Arn"]),
            credentials=lambda: self._credentials(metadata.role),
        )
        return Machine(
            processes=self._processes,
            disk=self._folder / instance_id,
            user_data=base64.b64decode(data["UserData"]).decode(),
            metadata=metadata,
            endpoint=self._endpoint,
            settings={
                "SPOT_PAUSE_SECONDS": "0.1",
                "SPOT_POLL_SECONDS": "0.5",
                "SPOT_QUIET_SECONDS": str(QUIET_SECONDS),
                "TQDM_MININTERVAL": "5",
                **self.settings,
            },
        )

    def _role(self, profile_arn: str) -> str:
        profile = self._iam.get_instance_profile(InstanceProfileName=profile_arn.split("/")[-1])
        (role,) = profile["InstanceProfile"]["Roles"]
        return str(role["RoleName"])

    def _credentials(self, role: str) -> dict[str, str]:
        """Temporary credentials of the machine's role, in the format of the metadata service."""
        arn = self._iam.get_role(RoleName=role)["Role"]["Arn"]
        given = self._sts.assume_role(RoleArn=arn, RoleSessionName="machine")["Credentials"]
        return {
            "Code": "Success",
            "Type": "AWS-HMAC",
            "AccessKeyId": given["AccessKeyId"],
            "SecretAccessKey": given["SecretAccessKey"],
            "Token": given["SessionToken"],
            "Expiration": given["Expiration"].strftime("%Y-%m-%dT%H:%M:%SZ"),
            "LastUpdated": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
