"""Starts, follows and stops a run on SageMaker."""

import dataclasses
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from botocore.exceptions import ClientError

from common.outputs import stack_output
from common.run_record import (
    ENDED,
    VERSION,
    Attempt,
    Request,
    RunRecord,
    utc_now,
)
from training.launcher.code import ON_SAGEMAKER, pack_code
from training.launcher.deployment import Deployment, LaunchError
from training.launcher.follow import POLL_SECONDS, StatusLine
from training.launcher.start import check_version
from training.learn.metric_line import describe_metrics
from training.sagemaker import PROGRAM
from training.sagemaker.preflight import JobPlan
from training.sagemaker.request import (
    DryRunError,
    Job,
    RunSession,
    files_for_the_container,
    model_trainer,
)
from training.sagemaker.results import import_results

OVER = {"Completed", "Failed", "Stopped"}  # TrainingJobStatus
ABSENT = {"ResourceNotFound", "ValidationException"}  # no such job: as documented; in practice
NOT_STARTED = "could not be started"


def dry_request(deployment: Deployment, job: Job) -> dict[str, Any]:
    """Return the parameters of CreateTrainingJob; write and start nothing."""
    session = RunSession(deployment.session, deployment.bucket, dry=True)
    try:
        model_trainer(session, training_role(), job).train(wait=False)
    except DryRunError as error:
        return error.request
    raise AssertionError("the SDK did not call CreateTrainingJob")


def training_role() -> str:
    """Return the ARN of the execution role of jobs; raises NotDeployedError without TrainStack."""
    return stack_output("TrainStack", "TrainingJobRoleArn")


def resumable(deployment: Deployment, run_id: str) -> Request:
    """Return the request of a run that was stopped or has failed.

    The results of a job that nobody has followed are imported first. Raises LaunchError for any
    other run.
    """
    record = choose_run(deployment, run_id)
    status = record.status()
    if status["state"] not in ENDED and status["attempts"]:
        job = _describe(deployment, status["attempts"][-1]["instance_id"])
        if job and job["TrainingJobStatus"] in OVER:
            import_results(deployment, record, job)
    state = record.status()["state"]
    if state not in {"failed", "stopped"}:
        raise LaunchError(
            f"run {run_id} is {state}: only a run that was stopped or has failed can be resumed"
        )
    request = record.request()
    check_version(request)
    return request


def start_job(deployment: Deployment, job: Job, plan: JobPlan, *, resumed: bool) -> None:
    """Write the run's request and start the job; a resumed run keeps its code and attempts."""
    record = deployment.record(job.run_id)
    earlier = record.status()["attempts"] if resumed else []
    if not resumed:
        put_code(deployment, job.run_id)
    record.write("request.json", _request(job, plan))
    record.set_status("requested", f"requested {utc_now()}", earlier)

    def add_attempt(parameters: Mapping[str, Any]) -> None:
        """Record the attempt before the job starts, so that no job is without a record."""
        attempt = Attempt(
            instance_id=parameters["TrainingJobName"],
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
        session = RunSession(deployment.session, deployment.bucket, before=add_attempt)
        trainer = model_trainer(session, training_role(), job)
        trainer.train(wait=False)
        if trainer._latest_training_job is None:
            raise KeyboardInterrupt  # the SDK's telemetry suppresses it
    except BaseException:
        _fail_unless_started(deployment, record, earlier)
        raise


def _request(job: Job, plan: JobPlan) -> Request:
    deadline = datetime.now(UTC) + timedelta(seconds=job.max_wait_seconds)
    return Request(
        **job.work,  # type: ignore[typeddict-item]  # it has the keys of Work only
        version=VERSION,
        run_id=job.run_id,
        deadline=deadline.isoformat(timespec="seconds"),
        estimate=dataclasses.asdict(plan.estimate),
        chunks=0,
        runtime="",
        service="sagemaker",
    )


def _fail_unless_started(deployment: Deployment, record: RunRecord, earlier: list[Attempt]) -> None:
    """After an error in the start, mark the run as failed unless its job exists."""
    attempts = record.status()["attempts"]
    if len(attempts) > len(earlier) and _describe(deployment, attempts[-1]["instance_id"]):
        print(
            f"run {record.run_id} has started nevertheless: stop it with `{PROGRAM} stop "
            f"{record.run_id}`",
            file=sys.stderr,
        )
    else:
        record.set_status("failed", NOT_STARTED, earlier)


def _describe(deployment: Deployment, name: str) -> Any:
    """Describe a training job; return None if it does not exist."""
    try:
        return deployment.session.client("sagemaker").describe_training_job(TrainingJobName=name)
    except ClientError as error:
        if error.response["Error"]["Code"] in ABSENT:
            return None
        raise


def put_code(deployment: Deployment, folder: str) -> None:
    """Upload the code of the jobs of a run or a search to runs/`folder`/."""
    deployment.s3.put_object(
        Bucket=deployment.bucket,
        Key=f"runs/{folder}/code.tar.gz",
        Body=pack_code(ON_SAGEMAKER, files_for_the_container()),
    )


def choose_run(deployment: Deployment, requested: str | None) -> RunRecord:
    """Return the record of the run `requested`, or else of the newest run on SageMaker.

    Raises LaunchError if there is none, or if the requested run is not on SageMaker.
    """
    for run_id in [requested] if requested else deployment.run_ids():
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
        f"there is no run {requested} on SageMaker: see `python -m training.launch list`"
        if requested
        else f"there is no run on SageMaker yet: start one with `{PROGRAM} train`"
    )


def follow(deployment: Deployment, record: RunRecord) -> bool:
    """Show the job until it ends, and import its results; return whether it succeeded."""
    status = record.status()
    if status["state"] in ENDED:
        print(f"run {record.run_id} {status['state']}: {status['message']}")
        return status["state"] == "succeeded"
    if not status["attempts"]:
        raise LaunchError(f"run {record.run_id} has no job, its start failed: start a new run")
    name = status["attempts"][-1]["instance_id"]
    try:
        with StatusLine() as line:
            while (job := _describe(deployment, name)) and job["TrainingJobStatus"] not in OVER:
                line.show(describe_job(job))
                time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        print(
            f"the job continues; get its results with `{PROGRAM} follow {record.run_id}`, stop it "
            f"with `{PROGRAM} stop {record.run_id}`"
        )
        return False
    if not job:
        record.set_status("failed", NOT_STARTED, status["attempts"][:-1])
        print(f"run {record.run_id} failed: {NOT_STARTED}")
        return False
    return import_results(deployment, record, job)


def describe_job(job: Mapping[str, Any]) -> str:
    """Return a job's status and latest metrics in one line."""
    latest = {each["MetricName"]: each["Value"] for each in job.get("FinalMetricDataList", [])}
    message = (job.get("SecondaryStatusTransitions") or [{}])[-1].get("StatusMessage", "")
    parts = [f"{job['SecondaryStatus']}, {message}".rstrip(", "), describe_metrics(latest)]
    return "; ".join(part for part in parts if part)


def stop_job(deployment: Deployment, record: RunRecord) -> None:
    """Ask SageMaker to stop the run's job; raises LaunchError if it has ended."""
    status = record.status()
    if status["state"] in ENDED or not status["attempts"]:
        raise LaunchError(f"run {record.run_id} is {status['state']}: there is nothing to stop")
    name = status["attempts"][-1]["instance_id"]
    deployment.session.client("sagemaker").stop_training_job(TrainingJobName=name)
    print(
        f"training job {name} is stopping; get its results with `{PROGRAM} follow {record.run_id}`"
    )
