"""Run a processing job on SageMaker, whose machines share the preparation of a data set."""

import hashlib
import json
import math
import re
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from common.command import confirmed
from common.names import PART_KEY, PROJECT_KEY, chosen_name, job_name_prefix
from common.outputs import stack_output
from costs.estimate import HOURS_PER_MONTH
from costs.prices import PriceError, load_prices
from data_prep.folder import DataError
from data_prep.options import DatasetOptions, JobOptions, PhotoOptions, format_range
from data_prep.pack import JPEG_BYTES_A_PIXEL
from infra.training_image import training_image
from training.launcher.checklist import Checklist
from training.launcher.code import PREPARATION, pack_code
from training.launcher.follow import StatusLine
from training.launcher.status import duration
from training.sagemaker.preflight import check_quota

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

HERE = Path(__file__).parent
ENTRY, REQUIREMENTS = HERE / "processing_entry.py", HERE / "requirements.txt"
NAME_LENGTH = 63 - len("-digest-20260101120000-abcd")  # left for our words in a job's name
JOB_FOLDER = "/opt/ml/processing/job"
FREE_GIB = 20  # of a disk, in addition to photos and shards
PHOTO_BYTES = 67_000  # of a public photo, on average, without its part of a shard
LOOK_SECONDS = 10.0
OVER = {"Completed", "Failed", "Stopped"}  # ProcessingJobStatus


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What a job has to do."""

    ids: Sequence[str]
    bucket: str
    photos: PhotoOptions
    dataset: DatasetOptions
    job: JobOptions

    def arguments(self) -> list[str]:
        """Return the flags of `data_prep all` for the job's machines."""
        values = asdict(self.dataset) | {
            "bucket": self.bucket,
            "counts": format_range(self.dataset.counts),
            "requests": self.photos.requests,
            "source_bucket": self.photos.source_bucket,
        }
        values["split"] = values.pop("method")
        return [
            f"--{name.replace('_', '-')}={value}"
            for name, value in values.items()
            if value is not None
        ]


def prepare_on_sagemaker(work: Preparation) -> None:
    """Check, ask, start the job and follow it to its end.

    Raises DataError if something is missing, the user declines, or the job fails.
    """
    session, job = boto3.Session(), work.job
    series = series_of(work.dataset.name)
    name = f"{series}{datetime.now(UTC):%Y%m%d%H%M%S}-{secrets.token_hex(2)}"
    request = job_request(session, name, work)
    # A dry run prints nothing but the request on standard output.
    with redirect_stdout(sys.stderr if job.dry_run else sys.stdout):
        enough = _check_machines(session, request)
    if job.dry_run:
        print(json.dumps(request, indent=1))
    if not enough:
        raise DataError("not started, see above: quota")
    if job.dry_run:
        return
    _check_alone(session, series)
    if not job.yes and not confirmed("Start it?"):
        raise DataError("not started")
    s3, prefix = session.client("s3"), job_prefix(name)
    for file, content in job_files(work.ids).items():
        s3.put_object(Bucket=work.bucket, Key=f"{prefix}{file}", Body=content)
    print(f"processing job {name} starts; stop it with `{_aws('stop', name)}`", flush=True)
    session.client("sagemaker").create_processing_job(**request)
    follow(session, work.bucket, work.dataset.name, name)


def series_of(dataset: str) -> str:
    """Return the prefix of the names of all jobs for this data set, and of no other jobs.

    It is short enough for the 63 characters of a job's name.
    """
    first = job_name_prefix(chosen_name())
    words = re.sub("[^A-Za-z0-9]", "-", dataset)[: NAME_LENGTH - len(first)]
    digest = hashlib.sha256(dataset.encode()).hexdigest()[:6]
    return f"{first}{words}-{digest}-"


def job_prefix(name: str) -> str:
    """Return the prefix of a job's own files in our bucket."""
    return f"jobs/{name}/"


def job_files(ids: Sequence[str]) -> dict[str, bytes]:
    """Return the files that the job's machines find in JOB_FOLDER, by name."""
    return {
        ENTRY.name: ENTRY.read_bytes(),
        REQUIREMENTS.name: REQUIREMENTS.read_bytes(),
        "code.tar.gz": pack_code(PREPARATION),
        "ids.txt": "".join(f"{photo_id}\n" for photo_id in ids).encode(),
    }


def job_request(session: boto3.Session, name: str, work: Preparation) -> dict[str, Any]:
    """Return the parameters of CreateProcessingJob.

    Raises NotDeployedError without TrainStack's role, DataError for a type without an image.
    """
    instances, instance_type = work.job.instances, work.job.instance_type
    share = math.ceil(len(work.ids) / instances)
    disk = share * (PHOTO_BYTES + JPEG_BYTES_A_PIXEL * work.dataset.size**2)
    region = session.region_name
    try:
        image = training_image(instance_type, region)
    except ValueError as error:
        raise DataError(f"there is no image for {instance_type} in {region}: {error}") from error
    return {
        "ProcessingJobName": name,
        "RoleArn": stack_output("TrainStack", "PreparationJobRoleArn"),
        "AppSpecification": {
            "ImageUri": image,
            "ContainerEntrypoint": ["python3", f"{JOB_FOLDER}/{ENTRY.name}"],
            "ContainerArguments": work.arguments(),
        },
        "ProcessingInputs": [
            {
                "InputName": "job",
                "S3Input": {
                    "S3Uri": f"s3://{work.bucket}/{job_prefix(name)}",
                    "LocalPath": JOB_FOLDER,
                    "S3DataType": "S3Prefix",
                    "S3InputMode": "File",
                },
            }
        ],
        "ProcessingResources": {
            "ClusterConfig": {
                "InstanceCount": instances,
                "InstanceType": instance_type,
                "VolumeSizeInGB": FREE_GIB + math.ceil(disk / 2**30),
            }
        },
        "StoppingCondition": {"MaxRuntimeInSeconds": round(work.job.max_hours * 3600)},
        # A progress bar never ends its line, so CloudWatch could not show it.
        "Environment": {"AWS_DEFAULT_REGION": region, "TQDM_DISABLE": "1"},
        "Tags": [
            {"Key": key, "Value": value}
            for key, value in {PROJECT_KEY: chosen_name(), PART_KEY: "data"}.items()
        ],
    }


def _check_machines(session: boto3.Session, request: Mapping[str, Any]) -> bool:
    """Print what the job may cost; returns whether the account's quota is large enough.

    Raises DataError for an instance type without a known price.
    """
    cluster = request["ProcessingResources"]["ClusterConfig"]
    instances, instance_type = cluster["InstanceCount"], cluster["InstanceType"]
    seconds = request["StoppingCondition"]["MaxRuntimeInSeconds"]
    prices = load_prices()
    try:
        hour = prices.sagemaker_hour(instance_type, "training").dollars
    except PriceError as error:
        raise DataError(f"{error}: choose one of them with --instance-type") from error
    gib_month = prices.other["sagemaker_volume_gib_month"].dollars
    hour += cluster["VolumeSizeInGB"] * gib_month / HOURS_PER_MONTH
    checks = Checklist()
    checks.try_check(
        "quota", lambda: check_quota(session, instance_type, "processing job", instances)
    )
    print(
        f"{instances} × {instance_type} for {duration(seconds)} at most: "
        f"${instances * hour * seconds / 3600:.2f} at most with disks, at the price of training"
    )
    return not checks.failed


def _check_alone(session: boto3.Session, series: str) -> None:
    """Raise DataError while another job prepares the same data set."""
    jobs = session.client("sagemaker").list_processing_jobs(NameContains=series)
    for job in jobs["ProcessingJobSummaries"]:  # the newest, which is enough
        if job["ProcessingJobStatus"] in OVER:
            continue
        name = job["ProcessingJobName"]
        raise DataError(
            f"job {name} is preparing this data set: wait for it, or run `{_aws('stop', name)}`"
        )


def follow(session: boto3.Session, bucket: str, dataset: str, name: str) -> None:
    """Show the job's progress until it ends; raises DataError if it does not complete."""
    sagemaker, s3 = session.client("sagemaker"), session.client("s3")
    try:
        with StatusLine() as line:
            while True:
                job = sagemaker.describe_processing_job(ProcessingJobName=name)
                if job["ProcessingJobStatus"] in OVER:
                    break
                done = describe_progress(s3, bucket, dataset, job["CreationTime"])
                line.show(f"{job['ProcessingJobStatus']}; {done}")
                time.sleep(LOOK_SECONDS)
    except (KeyboardInterrupt, BotoCoreError, ClientError) as error:
        print(f"the job continues; to see it, run `{_aws('describe', name)}`", file=sys.stderr)
        if isinstance(error, KeyboardInterrupt):
            sys.exit(130)
        raise
    if job["ProcessingJobStatus"] != "Completed":
        reason = job.get("FailureReason") or job.get("ExitMessage") or "no reason is given"
        raise DataError(
            f"job {name} {job['ProcessingJobStatus'].lower()}: {' '.join(reason.split())}; "
            "`aws logs tail /aws/sagemaker/ProcessingJobs --since 1d --log-stream-name-prefix "
            f"{name}/` shows its log; the same command continues where the job ended"
        )
    print(f"s3://{bucket}/datasets/{dataset}/")


def describe_progress(s3: "S3Client", bucket: str, dataset: str, since: datetime) -> str:
    """Count the files that the machines have left each other since the job was created."""
    pages = s3.get_paginator("list_objects_v2").paginate(
        Bucket=bucket, Prefix=f"preparing/{dataset}/"
    )
    items = [item for page in pages for item in page.get("Contents", [])]
    names = [item["Key"] for item in items if item["LastModified"] >= since]
    metadata = sum(name.endswith(".csv") for name in names)
    shards = sum(name.endswith(".json") for name in names)
    return f"metadata of {metadata} machines, {shards} shards"


def _aws(verb: str, name: str) -> str:
    return f"aws sagemaker {verb}-processing-job --processing-job-name {name}"
