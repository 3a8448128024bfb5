"""Imports the results of a job on SageMaker into the run's record, and publishes its model."""

import tarfile
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common.outputs import stack_output
from common.run_record import (
    OUTPUTS,
    TRACE_FILES,
    TRACES_ARCHIVE,
    Outcome,
    RunRecord,
    State,
    StatusChangedError,
)
from common.storage import pack_files
from costs.bill import run_bill
from costs.prices import load_prices
from training.launcher.deployment import Deployment
from training.launcher.status import duration
from training.sagemaker import PROGRAM


def import_results(deployment: Deployment, record: RunRecord, job: Mapping[str, Any]) -> bool:
    """Write the end of a job, and the results of a completed one, to the run's record.

    Returns whether the job succeeded.
    """
    attempts = record.status()["attempts"]
    attempt = attempts[-1]
    state, outcome, message = _ending(job)
    attempt["started"] = _time(job.get("TrainingStartTime", job["CreationTime"]))
    attempt["ended"] = _time(job.get("TrainingEndTime", job["LastModifiedTime"]))
    attempt["outcome"] = outcome
    attempt["billed_seconds"] = float(job.get("BillableTimeInSeconds", 0))
    model = job["ModelArtifacts"]["S3ModelArtifacts"] if state == "succeeded" else ""
    if model:
        message = f"model at {model}"
        copy_results(record, model.replace("model.tar.gz", "output.tar.gz"))
    record.write(
        "cost.json",
        run_bill(
            attempts,
            record.request(),
            instance_type=attempt["instance_type"],
            volume_gib=job["ResourceConfig"]["VolumeSizeInGB"],
            prices=load_prices(),
        ),
    )
    other_model = publish(deployment, model, job["TrainingEndTime"]) if model else None
    with suppress(StatusChangedError):  # by another `follow`, or by a resume of this run
        record.set_status(state, message, attempts)  # last, so that a failed import is repeated
    trained = duration(job.get("TrainingTimeInSeconds", 0))
    print(
        f"run {record.run_id} {state}: {message}\n"
        f"  {attempt.get('machines', 1)} × {attempt['instance_type']}, {trained} of training, "
        f"{duration(attempt['billed_seconds'])} billed"
    )
    if model:
        exact = record.judged()["accuracy"]["value"]
        print(f"  {exact:.1%} exact; report: {record.uri('report.html')}")
    if other_model:
        print(
            f"  the next deployment of the endpoint serves {other_model}, chosen after this job "
            f"ended; `python -m serving.models use {record.run_id}` changes that"
        )
    return state == "succeeded"


def publish(deployment: Deployment, model: str, ended: datetime) -> str | None:
    """Make the next deployment of the endpoint serve `model`.

    If another model was chosen after the job `ended`, keep that choice and return its URI.
    """
    name = stack_output("TrainStack", "ModelParameterName")
    ssm = deployment.session.client("ssm")
    parameter = ssm.get_parameter(Name=name)["Parameter"]
    chosen = parameter["Value"]
    if chosen != model and parameter["LastModifiedDate"] > ended and chosen.startswith("s3://"):
        return chosen
    ssm.put_parameter(Name=name, Value=model, Overwrite=True)
    return None


def copy_results(record: RunRecord, output: str) -> None:
    """Copy the outputs of training.train from the job's archive `output` to the record."""
    bucket, _, key = output.removeprefix("s3://").partition("/")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        archive = folder / "output.tar.gz"
        record.s3.download_file(bucket, key, str(archive))
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
        for name in OUTPUTS:
            record.upload(folder / name)
        traces = [folder / name for name in TRACE_FILES if (folder / name).exists()]
        pack_files(folder / TRACES_ARCHIVE, traces)
        record.upload(folder / TRACES_ARCHIVE)


def _ending(job: Mapping[str, Any]) -> tuple[State, Outcome, str]:
    """Return the state of the run, the outcome of the attempt, and a message for the user."""
    reason = job.get("FailureReason", "")
    match job["TrainingJobStatus"], job["SecondaryStatus"]:
        case "Completed", _:
            return "succeeded", "succeeded", ""
        case "Stopped", "Stopped":
            return "stopped", "stopped", "stopped by the user"
        case "Stopped", limit:  # MaxRuntimeExceeded, MaxWaitTimeExceeded
            return "failed", "failed", f"{limit}: run `{PROGRAM} resume` with more --max-hours"
        case _:
            return "failed", "failed", " ".join(reason.split()) or "SageMaker gave no reason"


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds")
