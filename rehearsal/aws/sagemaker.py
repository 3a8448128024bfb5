"""Has moto's SageMaker run the training jobs and searches that it otherwise only writes down.

Each job runs in a thread of the server, with the credentials of its own role; trials of a search
one after another, with settings drawn at random.
"""

import json
import math
import random
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
from moto.core.responses import ActionResult, EmptyResult
from moto.sagemaker.responses import SageMakerResponse

from rehearsal.aws.training_job import JobFailedError, JobStoppedError, TrainingJob

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

WAIT_SECONDS = 0.2
END_SECONDS = 3.0  # for a job to end with the server
# What a definition of trials calls otherwise than a training job.
SAME = (
    "AlgorithmSpecification",
    "RoleArn",
    "InputDataConfig",
    "OutputDataConfig",
    "ResourceConfig",
    "StoppingCondition",
    "EnableManagedSpotTraining",
    "CheckpointConfig",
    "Environment",
)


def run_jobs(endpoint: str, folder: Path) -> Callable[[], None]:
    """From now on, run each job that moto at `endpoint` is asked for, in a folder of its own.

    Returns what ends all that runs.

    moto hands its models no more of a request than it keeps, so that this is where requests come
    in.
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
        found = _sorted(
            searches[_search_name(response)].trials,
            response._get_param("SortBy") or "Name",
            descending=response._get_param("SortOrder") == "Descending",
        )
        return ActionResult({"TrainingJobSummaries": found})

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
    """One training job in a thread, and what DescribeTrainingJob says of it."""

    def __init__(self, request: Mapping[str, Any], endpoint: str, work: Path) -> None:
        work.mkdir(parents=True)
        self._request = request
        s3 = _s3_of(request["RoleArn"], endpoint)
        self._job = TrainingJob(request, work=work, s3=s3)
        self._outcome, self._reason = "", ""  # the status of a job that is over, and why
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
            "TrainingEndTime": None,  # moto has one from the beginning
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
                # On spot machines SageMaker bills fewer; here there is no price to go by.
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
        except Exception as error:  # of the rehearsal itself: the job must not hang for ever
            traceback.print_exc()
            self._reason, outcome = f"InternalServerError: {error!r}", "Failed"
        self._ended = datetime.now(UTC)
        self._outcome = outcome
        self.ended.set()


class RunningSearch:
    """A search in a thread: its trials are jobs like any others."""

    def __init__(self, request: Mapping[str, Any], endpoint: str) -> None:
        self._request = request
        self._sagemaker: Any = boto3.client("sagemaker", endpoint_url=endpoint)
        self._objective = request["HyperParameterTuningJobConfig"][
            "HyperParameterTuningJobObjective"
        ]
        self._status, self._reason = "InProgress", ""
        self._ended: datetime | None = None
        self._stopped = threading.Event()
        self.trials: list[dict[str, Any]] = []
        threading.Thread(target=self._run, daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def state(self) -> dict[str, Any]:
        ended = [trial["TrainingJobStatus"] for trial in self.trials]
        judged = [trial for trial in self.trials if _objective(trial) is not None]
        state: dict[str, Any] = {
            "HyperParameterTuningJobStatus": self._status
            if self._ended or not self._stopped.is_set()
            else "Stopping",
            "HyperParameterTuningEndTime": self._ended,
            "FailureReason": self._reason or None,
            "TrainingJobStatusCounters": {
                "Completed": ended.count("Completed"),
                "InProgress": ended.count("InProgress"),
                "RetryableError": 0,
                "NonRetryableError": ended.count("Failed"),
                "Stopped": ended.count("Stopped"),
            },
            "ObjectiveStatusCounters": {
                "Succeeded": len(judged),
                "Pending": ended.count("InProgress"),
                "Failed": ended.count("Failed"),
            },
        }
        best = max if self._objective["Type"] == "Maximize" else min
        state["BestTrainingJob"] = best(judged, key=_objective) if judged else None
        return state

    def _run(self) -> None:
        try:
            self._run_trials()
            self._status = "Stopped" if self._stopped.is_set() else "Completed"
        except Exception as error:  # of the rehearsal itself: the search must not hang for ever
            traceback.print_exc()
            self._reason, self._status = f"InternalServerError: {error!r}", "Failed"
        self._ended = datetime.now(UTC)

    def _run_trials(self) -> None:
        config = self._request["HyperParameterTuningJobConfig"]
        generator = random.Random(config.get("RandomSeed", 0))
        for number in range(1, config["ResourceLimits"]["MaxNumberOfTrainingJobs"] + 1):
            if self._stopped.is_set():
                break
            tuned = _draw(config["ParameterRanges"], generator)
            digits = f"{generator.getrandbits(32):08x}"
            name = f"{self._request['HyperParameterTuningJobName']}-{number:03d}-{digits}"
            self._run_trial(name, tuned)

    def _run_trial(self, name: str, tuned: dict[str, str]) -> None:
        definition, objective = self._request["TrainingJobDefinition"], self._objective
        own = {"_tuning_objective_metric": objective["MetricName"], **tuned}
        created = self._sagemaker.create_training_job(
            TrainingJobName=name,
            HyperParameters=definition["StaticHyperParameters"] | own,
            **{key: definition[key] for key in SAME if key in definition},
        )
        trial: dict[str, Any] = {
            "TrainingJobName": name,
            "TrainingJobArn": created["TrainingJobArn"],
            "TunedHyperParameters": tuned,
        }
        trial |= {"TrainingJobStatus": "InProgress", "CreationTime": datetime.now(UTC)}
        self.trials.append(trial)
        while True:
            job = self._sagemaker.describe_training_job(TrainingJobName=name)
            if job["TrainingJobStatus"] in {"Completed", "Failed", "Stopped"}:
                break
            if self._stopped.is_set():
                self._sagemaker.stop_training_job(TrainingJobName=name)
            time.sleep(WAIT_SECONDS)
        found = {each["MetricName"]: each["Value"] for each in job["FinalMetricDataList"]}
        if objective["MetricName"] in found and job["TrainingJobStatus"] == "Completed":
            value = {**objective, "Value": found[objective["MetricName"]]}
            trial["FinalHyperParameterTuningJobObjectiveMetric"] = value
        trial["TrainingJobStatus"] = job["TrainingJobStatus"]


def _objective(trial: Mapping[str, Any]) -> Any:
    return trial.get("FinalHyperParameterTuningJobObjectiveMetric", {}).get("Value")


def _draw(ranges: Mapping[str, Any], generator: random.Random) -> dict[str, str]:
    """A value for each parameter, as text."""
    drawn = {}
    for each in ranges.get("CategoricalParameterRanges", []):
        drawn[each["Name"]] = generator.choice(each["Values"])
    for each in ranges.get("IntegerParameterRanges", []):
        low, high = int(each["MinValue"]), int(each["MaxValue"])
        # Each whole number has the interval up to the next one.
        drawn[each["Name"]] = str(min(math.floor(_between(low, high + 1, each, generator)), high))
    for each in ranges.get("ContinuousParameterRanges", []):
        least, most = float(each["MinValue"]), float(each["MaxValue"])
        drawn[each["Name"]] = repr(_between(least, most, each, generator))
    return drawn


def _between(
    least: float, most: float, range_: Mapping[str, str], generator: random.Random
) -> float:
    share = generator.random()
    logarithmic = range_.get("ScalingType") == "Logarithmic"
    value: float = (
        least * (most / least) ** share if logarithmic else least + share * (most - least)
    )
    return value


def _sorted(trials: list[dict[str, Any]], by: str, *, descending: bool) -> list[dict[str, Any]]:
    """As ListTrainingJobsForHyperParameterTuningJob has them: by their objective, only those with
    one."""
    keys: dict[str, Callable[[dict[str, Any]], Any]] = {
        "Name": lambda trial: trial["TrainingJobName"],
        "CreationTime": lambda trial: trial["CreationTime"],
        "Status": lambda trial: trial["TrainingJobStatus"],
        "FinalObjectiveMetricValue": _objective,
    }
    found = [
        trial
        for trial in trials
        if by != "FinalObjectiveMetricValue" or _objective(trial) is not None
    ]
    return sorted(found, key=keys[by], reverse=descending)


def _s3_of(role: str, endpoint: str) -> "S3Client":
    """S3 with the credentials of a job's role."""
    taken = boto3.client("sts", endpoint_url=endpoint).assume_role(
        RoleArn=role, RoleSessionName="SageMaker"
    )["Credentials"]
    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=taken["AccessKeyId"],
        aws_secret_access_key=taken["SecretAccessKey"],
        aws_session_token=taken["SessionToken"],
    )


def _search_name(response: SageMakerResponse) -> str:
    name: str = response._get_param("HyperParameterTuningJobName")
    return name


def _merged(answer: ActionResult, state: Mapping[str, Any]) -> ActionResult:
    """moto's answer with what is so, less what is None."""
    assert isinstance(answer.result, dict)
    described = {**answer.result, **state}
    return ActionResult({key: value for key, value in described.items() if value is not None})
