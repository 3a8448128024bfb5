"""A run on SageMaker: started, followed, and taken up into the run record when it is over."""

import dataclasses
import secrets
import sys
import tarfile
import tempfile
import time
from argparse import Namespace
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from common.outputs import stack_output
from common.run_record import (
    ENDED,
    OUTPUTS,
    TRACED,
    TRACES,
    Attempt,
    Outcome,
    Request,
    RunRecord,
    State,
    StatusChangedError,
    utc_now,
)
from common.storage import pack_files
from costs.bill import training_job_bill
from costs.prices import load_prices
from training.launcher.code import ON_SAGEMAKER, pack_code
from training.launcher.deployment import Deployment, LaunchError
from training.launcher.follow import POLL_SECONDS, StatusLine
from training.launcher.start import check_version
from training.launcher.status import duration
from training.learn.metric_line import describe_metrics
from training.sagemaker.preflight import JobPlan
from training.sagemaker.request import (
    DryRunError,
    Job,
    RunSession,
    files_for_the_container,
    model_trainer,
)

PROGRAM = "python -m training.sagemaker"
OVER = {"Completed", "Failed", "Stopped"}  # TrainingJobStatus
ABSENT = {"ResourceNotFound", "ValidationException"}  # of a job, by the API and in practice
NOT_STARTED = "could not be started"


def new_run_id(arch: str) -> str:
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{arch}-{secrets.token_hex(2)}"


def dry_request(deployment: Deployment, job: Job) -> dict[str, Any]:
    """CreateTrainingJob's parameters, without a call that writes or starts anything."""
    session = RunSession(deployment.session, deployment.bucket, dry=True)
    try:
        model_trainer(session, training_role(), job).train(wait=False)
    except DryRunError as error:
        return error.request
    raise AssertionError("SageMaker was not asked for a job")


def training_role() -> str:
    """ARN of the role that SageMaker takes for a job. Raises NotDeployedError."""
    return stack_output("TrainStack", "TrainingJobRoleArn")


def resumable(deployment: Deployment, run_id: str) -> Request:
    """The request of a run that has ended without success. Raises LaunchError for any other."""
    record = choose_run(deployment, run_id)
    status = record.status()
    if status["state"] not in ENDED and status["attempts"]:
        job = _describe(deployment, status["attempts"][-1]["instance_id"])
        if job and job["TrainingJobStatus"] in OVER:
            take_up(deployment, record, job)  # nobody has followed it
    state = record.status()["state"]
    if state not in {"failed", "stopped"}:
        raise LaunchError(f"run {run_id} is {state}: only one that failed or was stopped goes on")
    request = record.request()
    check_version(request)
    return request


def start_job(deployment: Deployment, job: Job, args: Namespace, plan: JobPlan) -> None:
    """Write the run's request, start the job; of a run that there was before, one more attempt
    with the same code, from its checkpoints."""
    record = deployment.record(job.run_id)
    earlier = record.status()["attempts"] if args.resumes else []
    if not args.resumes:
        put_code(deployment, job.run_id)
    record.write("request.json", _request(job, args, plan))
    record.set_status("requested", f"requested {utc_now()}", earlier)

    def note(asked: Mapping[str, Any]) -> None:
        """Before SageMaker is asked: no job is ever there that no record knows."""
        attempt = Attempt(
            instance_id=asked["TrainingJobName"],
            instance_type=job.instance_type,
            zone=deployment.session.region_name,
            purchase="spot" if job.spot else "on_demand",
            started=utc_now(),
            machines=job.instances,
            volume_gib=job.volume_gib,
        )
        attempts = [*earlier, attempt]
        record.set_status("running", f"training job {attempt['instance_id']}", attempts)

    try:
        session = RunSession(deployment.session, deployment.bucket, before=note)
        trainer = model_trainer(session, training_role(), job)
        trainer.train(wait=False)
        if trainer._latest_training_job is None:
            raise KeyboardInterrupt  # which the SDK's telemetry swallows
    except BaseException:
        _close_unless_there(deployment, record, earlier)
        raise


def _request(job: Job, args: Namespace, plan: JobPlan) -> Request:
    deadline = datetime.now(UTC) + timedelta(seconds=job.max_wait_seconds)
    return Request(
        run_id=job.run_id,
        dataset=job.dataset,
        arch=job.arch,
        train_arguments=args.train_arguments,
        deadline=deadline.isoformat(timespec="seconds"),
        estimate=dataclasses.asdict(plan.estimate),
        mode=args.mode,
        ensemble_size=args.ensemble_size,
        epochs=args.epochs,
        chunks=0,
        runtime="",
        service="sagemaker",
    )


def _close_unless_there(deployment: Deployment, record: RunRecord, earlier: list[Attempt]) -> None:
    """After a start that broke off: the run has failed, unless its job was made all the same."""
    attempts = record.status()["attempts"]
    if len(attempts) > len(earlier) and _describe(deployment, attempts[-1]["instance_id"]):
        print(
            f"run {record.run_id} has started all the same: end it with `{PROGRAM} stop "
            f"{record.run_id}`",
            file=sys.stderr,
        )
    else:
        record.set_status("failed", NOT_STARTED, earlier)


def _describe(deployment: Deployment, name: str) -> Any:
    """What SageMaker says of a training job; None when there is none of that name."""
    try:
        return deployment.session.client("sagemaker").describe_training_job(TrainingJobName=name)
    except ClientError as error:
        if error.response["Error"]["Code"] in ABSENT:
            return None
        raise


def put_code(deployment: Deployment, folder: str) -> None:
    """The code that the jobs of runs/`folder`/ run."""
    deployment.s3.put_object(
        Bucket=deployment.bucket,
        Key=f"runs/{folder}/code.tar.gz",
        Body=pack_code(ON_SAGEMAKER, files_for_the_container()),
    )


def choose_run(deployment: Deployment, asked: str | None) -> RunRecord:
    """The record of the run asked for, or else of the newest one on SageMaker.

    Raises LaunchError when there is none, or the one asked for is not on SageMaker.
    """
    for run_id in [asked] if asked else deployment.run_ids():
        record = deployment.record(run_id)
        try:
            request = record.request()
        except ClientError as error:
            if error.response["Error"]["Code"] != "NoSuchKey":
                raise
            continue
        if request.get("service") == "sagemaker":
            return record
    raise LaunchError(
        f"there is no run {asked} on SageMaker: see `python -m training.launch list`"
        if asked
        else f"there is no run on SageMaker yet: start one with `{PROGRAM} train`"
    )


def follow(deployment: Deployment, record: RunRecord) -> bool:
    """Show the job until it ends, and take up what it left; returns whether it succeeded."""
    status = record.status()
    if status["state"] in ENDED:
        print(f"run {record.run_id} {status['state']}: {status['message']}")
        return status["state"] == "succeeded"
    if not status["attempts"]:
        raise LaunchError(f"run {record.run_id} has no job: its start broke off, start a new one")
    attempt = status["attempts"][-1]
    line = StatusLine()
    try:
        while True:
            job = _describe(deployment, attempt["instance_id"])
            if not job or job["TrainingJobStatus"] in OVER:
                break
            line.show(describe_job(job))
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        line.close()
        print(
            f"the job goes on without you; take up its result with `{PROGRAM} follow "
            f"{record.run_id}`, end it with `{PROGRAM} stop {record.run_id}`"
        )
        return False
    line.close()
    if not job:
        record.set_status("failed", NOT_STARTED, status["attempts"][:-1])
        print(f"run {record.run_id} failed: {NOT_STARTED}")
        return False
    return take_up(deployment, record, job)


def describe_job(job: Mapping[str, Any]) -> str:
    """One line: what SageMaker does, and the latest measurement."""
    latest = {each["MetricName"]: each["Value"] for each in job.get("FinalMetricDataList", [])}
    message = (job.get("SecondaryStatusTransitions") or [{}])[-1].get("StatusMessage", "")
    parts = [f"{job['SecondaryStatus']}, {message}".rstrip(", "), describe_metrics(latest)]
    return "; ".join(part for part in parts if part)


def take_up(deployment: Deployment, record: RunRecord, job: Mapping[str, Any]) -> bool:
    """Write the end of a job into the run's record; of one that completed, with its results."""
    *earlier, attempt = record.status()["attempts"]
    state, outcome, message = _ending(job)
    ended = Attempt(**attempt) | Attempt(  # type: ignore[typeddict-item]  # the parts that change
        started=_time(job.get("TrainingStartTime", job["CreationTime"])),
        ended=_time(job.get("TrainingEndTime", job["LastModifiedTime"])),
        outcome=outcome,
        billed_seconds=float(job.get("BillableTimeInSeconds", 0)),
    )
    attempts = [*earlier, ended]
    model = job["ModelArtifacts"]["S3ModelArtifacts"] if state == "succeeded" else ""
    if model:
        message = f"model at {model}"
        keep_results(record, model.replace("model.tar.gz", "output.tar.gz"))
    record.write(
        "cost.json",
        training_job_bill(
            attempts,
            record.request(),
            volume_gib=job["ResourceConfig"]["VolumeSizeInGB"],
            prices=load_prices(),
        ),
    )
    kept = publish(deployment, model, job["TrainingEndTime"]) if model else None
    with suppress(StatusChangedError):  # by another `follow`, or by a resume of this run
        record.set_status(state, message, attempts)  # last: until then, to be taken up once more
    trained = duration(job.get("TrainingTimeInSeconds", 0))
    billed = duration(ended["billed_seconds"])
    machines = attempt.get("machines", 1)
    print(
        f"run {record.run_id} {state}: {message}\n"
        f"  {machines} × {attempt['instance_type']}, {trained} of training, {billed} billed"
    )
    if model:
        exact = record.judged()["accuracy"]["value"]
        print(f"  {exact:.1%} exact; report: {record.uri('report.html')}")
    if kept:
        print(
            f"  the next deploy of the endpoint serves {kept}, chosen since this job ended; "
            f"`python -m serving.models use {record.run_id}` changes that"
        )
    return state == "succeeded"


def publish(deployment: Deployment, model: str, ended: datetime) -> str | None:
    """Have the endpoint's next deploy serve `model`, unless another was chosen after it `ended`.

    Returns that other.
    """
    name = stack_output("TrainStack", "ModelParameterName")
    ssm = deployment.session.client("ssm")
    parameter = ssm.get_parameter(Name=name)["Parameter"]
    chosen = parameter["Value"]
    if chosen != model and parameter["LastModifiedDate"] > ended and chosen.startswith("s3://"):
        return chosen
    ssm.put_parameter(Name=name, Value=model, Overwrite=True)
    return None


def keep_results(record: RunRecord, output: str) -> None:
    """Copy what training.train left beside the model from the job's archive to the record."""
    bucket, _, key = output.removeprefix("s3://").partition("/")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        archive = folder / "output.tar.gz"
        record.s3.download_file(bucket, key, str(archive))
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
        for name in OUTPUTS:
            record.upload(folder / name)
        traced = [folder / name for name in TRACED if (folder / name).exists()]
        pack_files(folder / TRACES, traced)
        record.upload(folder / TRACES)


def stop_job(deployment: Deployment, record: RunRecord) -> None:
    """Ask SageMaker to end the run's job. Raises LaunchError when it is over."""
    status = record.status()
    if status["state"] in ENDED or not status["attempts"]:
        raise LaunchError(f"run {record.run_id} is {status['state']}: there is nothing to stop")
    name = status["attempts"][-1]["instance_id"]
    deployment.session.client("sagemaker").stop_training_job(TrainingJobName=name)
    print(f"training job {name} was asked to stop; see its end with `{PROGRAM} follow`")


def _ending(job: Mapping[str, Any]) -> tuple[State, Outcome, str]:
    """State of the run, outcome of the attempt, and a message for a person."""
    reason = job.get("FailureReason", "")
    match job["TrainingJobStatus"], job["SecondaryStatus"]:
        case "Completed", _:
            return "succeeded", "succeeded", ""
        case "Stopped", "Stopped":
            return "stopped", "stopped", "stopped as asked"
        case "Stopped", limit:  # MaxRuntimeExceeded, MaxWaitTimeExceeded
            return "failed", "failed", f"{limit}: `{PROGRAM} resume` with more --max-hours goes on"
        case _:
            return "failed", "failed", " ".join(reason.split()) or "no reason was given"


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds")
