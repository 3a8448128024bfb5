"""Makes moto's SageMaker run the training jobs and searches that it otherwise only records.

Each job runs in a thread of the server, with the credentials of its own role.
"""

import json
import threading
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from moto.core.responses import ActionResult, EmptyResult
from moto.sagemaker.responses import SageMakerResponse

from rehearsal.aws.roles import s3_as_sagemaker
from rehearsal.aws.search import RunningSearch
from rehearsal.aws.training_job import JobFailedError, JobStoppedError, TrainingJob

END_SECONDS = 3.0  # for a job to end with the server


def run_jobs(endpoint: str, folder: Path) -> Callable[[], None]:
    """From now on, run each job that is requested from moto at `endpoint`, in a folder of its own.

    Returns a function that ends all jobs. Requests are intercepted here because moto passes only
    the part of them that it keeps on to its models.
    """
    jobs: dict[str, RunningJob] = {}
    searches: dict[str, RunningSearch] = {}
    create_job, create_search, describe_job, describe_search = (
        SageMakerResponse.create_training_job,
        SageMakerResponse.create_hyper_parameter_tuning_job,
        SageMakerResponse.describe_training_job,
        SageMakerResponse.describe_hyper_parameter_tuning_job,
    )

    def created_job(response: SageMakerResponse) -> ActionResult:
        request = json.loads(response.body)
        answer = create_job(response)
        name = request["TrainingJobName"]
        jobs[name] = RunningJob(request, endpoint, folder / name)
        return answer

    def created_search(response: SageMakerResponse) -> ActionResult:
        request = json.loads(response.body)
        answer = create_search(response)
        searches[request["HyperParameterTuningJobName"]] = RunningSearch(request, endpoint)
        return answer

    def job(response: SageMakerResponse) -> ActionResult:
        answer = describe_job(response)
        running = jobs.get(response._get_param("TrainingJobName"))
        return _merged(answer, running.state() if running else {})

    def search(response: SageMakerResponse) -> ActionResult:
        answer = describe_search(response)
        return _merged(answer, searches[_search_name(response)].state())

    def trials(response: SageMakerResponse) -> ActionResult:
        return ActionResult({"TrainingJobSummaries": searches[_search_name(response)].trials})

    def stopped_job(response: SageMakerResponse) -> EmptyResult:
        jobs[response._get_param("TrainingJobName")].stop()
        return EmptyResult()

    def stopped_search(response: SageMakerResponse) -> EmptyResult:
        searches[_search_name(response)].stop()
        return EmptyResult()

    for name, method in {
        "create_training_job": created_job,
        "create_hyper_parameter_tuning_job": created_search,
        "describe_training_job": job,
        "describe_hyper_parameter_tuning_job": search,
        "list_training_jobs_for_hyper_parameter_tuning_job": trials,
        "stop_training_job": stopped_job,
        "stop_hyper_parameter_tuning_job": stopped_search,
    }.items():
        setattr(SageMakerResponse, name, method)

    def end() -> None:
        for search in list(searches.values()):
            search.stop()
        for job in list(jobs.values()):
            job.stop()
        for job in list(jobs.values()):
            job.ended.wait(END_SECONDS)

    return end


class RunningJob:
    """One training job in a thread, and what DescribeTrainingJob answers about it."""

    def __init__(self, request: Mapping[str, Any], endpoint: str, work: Path) -> None:
        work.mkdir(parents=True)
        self._request = request
        s3 = s3_as_sagemaker(request["RoleArn"], endpoint)
        self._job = TrainingJob(request, work=work, s3=s3)
        self._outcome, self._reason = "", ""  # the status of a job that has ended, and why
        self._stopping = False
        self._started = datetime.now(UTC)
        self._ended: datetime | None = None
        self.ended = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def stop(self) -> None:
        self._stopping = True
        self._job.stop()

    def state(self) -> dict[str, Any]:
        now = self._ended or datetime.now(UTC)
        metrics = self._job.metrics()
        steps = self._steps()
        going_on = "Stopping" if self._stopping else "InProgress"
        state: dict[str, Any] = {
            "TrainingJobStatus": self._outcome or going_on,
            "SecondaryStatus": steps[-1]["Status"],
            "TrainingStartTime": self._started,
            "TrainingEndTime": None,  # moto sets one from the beginning
            "LastModifiedTime": now,
            "AlgorithmSpecification": self._request["AlgorithmSpecification"],
            "SecondaryStatusTransitions": steps,
            "FinalMetricDataList": [
                {"MetricName": name, "Value": value, "Timestamp": now}
                for name, value in metrics.items()
            ],
        }
        if self._ended:
            seconds = round((self._ended - self._started).total_seconds())
            state |= {
                "TrainingEndTime": self._ended,
                "TrainingTimeInSeconds": seconds,
                # SageMaker bills fewer on spot machines; here there is no price to derive it from.
                "BillableTimeInSeconds": max(seconds - round(self._job.away_seconds), 1),
            }
        if self._reason:
            state["FailureReason"] = self._reason
        return state

    def _steps(self) -> list[dict[str, Any]]:
        """The secondary statuses so far."""
        steps = [("Starting", self._started)]
        if self._job.started:
            steps.append(("Training", self._job.started))
        if self._outcome and self._ended:
            steps.append((self._outcome, self._ended))
        elif self._stopping:
            steps.append(("Stopping", datetime.now(UTC)))
        return [
            {"Status": status, "StartTime": since, "StatusMessage": ""} for status, since in steps
        ]

    def _run(self) -> None:
        try:
            self._job.run()
            outcome = "Completed"
        except JobStoppedError:
            outcome = "Stopped"
        except JobFailedError as error:
            self._reason, outcome = str(error), "Failed"
        except Exception as error:  # of the rehearsal itself: the job must not hang forever
            traceback.print_exc()
            self._reason, outcome = f"InternalServerError: {error!r}", "Failed"
        self._ended = datetime.now(UTC)
        self._outcome = outcome
        self.ended.set()


def _search_name(response: SageMakerResponse) -> str:
    name: str = response._get_param("HyperParameterTuningJobName")
    return name


def _merged(answer: ActionResult, state: Mapping[str, Any]) -> ActionResult:
    """moto's answer updated with `state`, without the values that are None."""
    assert isinstance(answer.result, dict)
    described = {**answer.result, **state}
    return ActionResult({key: value for key, value in described.items() if value is not None})
