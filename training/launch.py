"""Start a training run on a spot machine of the deployed TrainStack.

    python -m training.launch --dataset bins --arch resnet50
    python -m training.launch --dataset bins -- --epochs 60     (flags of training.train after --)

States the expected time and cost, writes runs/<id>/request.json, books the end of the group at
the deadline, and only then sets the group to 1. The machine does the rest and ends itself.
"""

import argparse
import dataclasses
import io
import json
import secrets
import sys
import tarfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from costs.estimate import Estimate, estimate_training
from costs.prices import PriceError, Purchase, load_prices
from infra.outputs import NotDeployedError, stack_output
from training.control import CurrentRun, RunActiveError, current_run, end_run, start_run
from training.run_record import Request, RunRecord, utc_now
from training.settings import ARCHITECTURES
from training.settings import parse_arguments as parse_train_arguments
from training.transfer import list_keys

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

ROOT = Path(__file__).resolve().parent.parent
CODE = ("training", "serving", "costs")  # packages that a machine needs
BOOKING = "end-training"  # one name: a new run's booking replaces the last one's
LONGEST_HOURS = 7 * 24


class LaunchError(RuntimeError):
    """The run cannot start; the message is one line."""


def launch(args: argparse.Namespace) -> str:
    """Start the run; returns its id. Raises LaunchError when something is missing."""
    session = launcher_session(stack_output("TrainStack", "LauncherRoleArn"))
    bucket = stack_output("DataStack", "BucketName")
    group = stack_output("TrainStack", "GroupName")
    s3 = session.client("s3")
    record = RunRecord(s3, bucket, _new_run_id(args.arch))
    runtime = _check_inputs(s3, record, args)
    autoscaling = session.client("autoscaling")
    instance_type, purchase = _machine(autoscaling, group)
    estimate = _estimate(record, args, instance_type, purchase)
    print(
        f"run {record.run_id}: about {estimate.seconds / 60:.0f} minutes and "
        f"${estimate.dollars:.3f} on a {instance_type}, {purchase.replace('_', '-')}; "
        f"ended by force after {args.max_hours:g} hours\n  basis: {estimate.basis}"
    )
    if not args.yes and input("Start it? [y/N] ").strip().lower() not in {"y", "yes"}:
        raise LaunchError("not started")

    _clear_ended_run(s3, bucket, autoscaling, group)
    deadline = datetime.now(UTC) + timedelta(hours=args.max_hours)
    _write_request(record, args, deadline, estimate)
    start_run(s3, bucket, CurrentRun(run_id=record.run_id, runtime=runtime))
    try:
        _book_end(autoscaling, group, deadline)
        # CloudFormation cannot say so: never end a machine at work to even out the zones.
        autoscaling.suspend_processes(AutoScalingGroupName=group, ScalingProcesses=["AZRebalance"])
        autoscaling.set_desired_capacity(AutoScalingGroupName=group, DesiredCapacity=1)
    except BaseException:  # Ctrl-C as well: no machine will come to end this run
        end_run(s3, bucket)
        record.set_status("failed", "could not be started", [])
        raise
    print(f"started; its record: {record.uri('')}")
    return record.run_id


def launcher_session(role_arn: str) -> boto3.Session:
    """A session with the launcher's role, which may start runs and little else."""
    credentials = boto3.client("sts").assume_role(RoleArn=role_arn, RoleSessionName="launch")[
        "Credentials"
    ]
    return boto3.Session(
        aws_access_key_id=credentials["AccessKeyId"],
        aws_secret_access_key=credentials["SecretAccessKey"],
        aws_session_token=credentials["SessionToken"],
    )


def _new_run_id(arch: str) -> str:
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{arch}-{secrets.token_hex(2)}"


def _check_inputs(s3: "S3Client", record: RunRecord, args: argparse.Namespace) -> str:
    """Look for data set, weights and wheels; returns the prefix of the newest wheels."""
    for key, command in (
        (f"datasets/{args.dataset}/manifest.json", f"data_prep all --name {args.dataset}"),
        (f"weights/{args.arch}.pth", f"data_prep weights --arch {args.arch}"),
    ):
        if key not in list_keys(s3, record.bucket, key):
            raise LaunchError(f"s3://{record.bucket}/{key} is missing: run `python -m {command}`")
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=record.bucket, Prefix="runtime/")
    built = [
        (item["LastModified"], item["Key"])
        for page in pages
        for item in page.get("Contents", [])
        if item["Key"].endswith("/requirements.txt")
    ]
    if not built:
        raise LaunchError("no wheels for the machine: run `python -m training.runtime`")
    return max(built)[1].removesuffix("requirements.txt")


def _machine(autoscaling: Any, group: str) -> tuple[str, Purchase]:
    """What the group starts: the first of its types (one of the others costs about as much), and
    how it is bought."""
    groups = autoscaling.describe_auto_scaling_groups(AutoScalingGroupNames=[group])
    policy = groups["AutoScalingGroups"][0]["MixedInstancesPolicy"]
    on_demand = policy["InstancesDistribution"]["OnDemandPercentageAboveBaseCapacity"]
    instance_type: str = policy["LaunchTemplate"]["Overrides"][0]["InstanceType"]
    return instance_type, "on_demand" if on_demand else "spot"


def _estimate(
    record: RunRecord, args: argparse.Namespace, instance_type: str, purchase: Purchase
) -> Estimate:
    key = f"datasets/{args.dataset}/manifest.json"
    manifest = json.loads(record.s3.get_object(Bucket=record.bucket, Key=key)["Body"].read())
    photos = sum(sum(by_count.values()) for by_count in manifest["photos"].values())
    return estimate_training(
        photos, args.arch, args.epochs, instance_type, load_prices(), purchase=purchase
    )


def _clear_ended_run(s3: "S3Client", bucket: str, autoscaling: Any, group: str) -> None:
    """Close the record of a run whose machines are gone without having said so.

    Raises RunActiveError when the group is at work.
    """
    active = current_run(s3, bucket)
    groups = autoscaling.describe_auto_scaling_groups(AutoScalingGroupNames=[group])
    (state,) = groups["AutoScalingGroups"]
    if state["DesiredCapacity"] or state["Instances"]:
        raise RunActiveError(
            f"{group} is at work on run {active['run_id'] if active else '?'}: wait for its end"
        )
    if active:
        ended = RunRecord(s3, bucket, active["run_id"])
        status = ended.status()
        if status["state"] not in {"succeeded", "failed"}:
            ended.set_status("failed", "ended without a word, see boot.log", status["attempts"])
        end_run(s3, bucket)


def _write_request(
    record: RunRecord, args: argparse.Namespace, deadline: datetime, estimate: Estimate
) -> None:
    request = Request(
        run_id=record.run_id,
        dataset=args.dataset,
        arch=args.arch,
        train_arguments=args.train_arguments,
        deadline=deadline.isoformat(timespec="seconds"),
        estimate=dataclasses.asdict(estimate),
    )
    record.s3.put_object(Bucket=record.bucket, Key=record.key("code.tar.gz"), Body=_pack_code())
    record.write("request.json", request)
    record.set_status("requested", f"requested {utc_now()}", [])


def _pack_code() -> bytes:
    """The packages that a machine of this run executes, whatever is deployed or edited later."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        for package in CODE:
            for file in sorted((ROOT / package).iterdir()):
                if file.suffix in {".py", ".json"}:
                    tar.add(file, arcname=f"{package}/{file.name}")
    return content.getvalue()


def _book_end(autoscaling: Any, group: str, deadline: datetime) -> None:
    """Have the group go to 0 at the deadline, whatever happens, and read that back."""
    autoscaling.put_scheduled_update_group_action(
        AutoScalingGroupName=group,
        ScheduledActionName=BOOKING,
        StartTime=deadline,
        MinSize=0,
        DesiredCapacity=0,
    )
    actions = autoscaling.describe_scheduled_actions(
        AutoScalingGroupName=group, ScheduledActionNames=[BOOKING]
    )["ScheduledUpdateGroupActions"]
    if [action["DesiredCapacity"] for action in actions] != [0]:
        raise LaunchError(f"the end at {deadline:%H:%M} UTC could not be booked, nothing started")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The flags; `train_arguments`, after --, are checked by training.train's own parser."""
    parser = argparse.ArgumentParser(
        prog="python -m training.launch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flag = parser.add_argument
    flag("--dataset", default="bins", help="name of an uploaded data set (default: %(default)s)")
    flag(
        "--arch",
        choices=sorted(ARCHITECTURES),
        default="resnet50",
        help="pretrained backbone (default: %(default)s)",
    )
    flag(
        "--max-hours",
        type=float,
        default=3,
        help="no machine runs after this, whatever happens (default: %(default)s)",
    )
    flag("--yes", action="store_true", help="start without asking")
    flag("train_arguments", nargs="*", metavar="-- FLAG", help="flags of training.train, after --")
    args = parser.parse_args(arguments)
    if not 0 < args.max_hours <= LONGEST_HOURS:
        parser.error(f"--max-hours must be above 0, at most {LONGEST_HOURS}")
    set_by_machine = ["--data", "-", "--weights", "-", "--output", "-", "--arch", args.arch]
    expected = parse_train_arguments(set_by_machine)
    asked = parse_train_arguments([*set_by_machine, *args.train_arguments])
    for name in ("data", "weights", "output", "arch", "checkpoint_dir", "run_id"):
        if getattr(asked, name) != getattr(expected, name):
            parser.error(f"--{name.replace('_', '-')} is set by the machine, not after --")
    args.epochs = asked.epochs
    return args


def main() -> None:
    args = parse_arguments()
    try:
        launch(args)
    except (LaunchError, NotDeployedError, PriceError, RunActiveError) as error:
        sys.exit(f"error: {error}")
    except (BotoCoreError, ClientError) as error:
        sys.exit(f"error: AWS: {error}")
    except (EOFError, KeyboardInterrupt):
        sys.exit("\nerror: not started")


if __name__ == "__main__":
    main()
