"""Has moto's SageMaker run the training jobs and searches that it otherwise only writes down.

Each job runs in a thread of the server, with the credentials of its own role; trials of a search
one after another, with settings drawn at random.
"""

import json
import random
import threading
import time
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
from moto.core.responses import ActionResult, EmptyResult
from moto.sagemaker.responses import SageMakerResponse

from rehearsal.training_job import JobFailedError, JobStoppedError, TrainingJob

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

WAIT_SECONDS = 0.2
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


def run_jobs(endpoint: str, folder: Path) -> None:
    """From now on, run each job that moto at `endpoint` is asked for, in a folder of its own.

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
        found = list(searches[_search_name(response)].trials)
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


class RunningJob:
    """One training job in a thread, and what DescribeTrainingJob says of it."""

    def __init__(self, request: Mapping[str, Any], endpoint: str, work: Path) -> None:
        work.mkdir(parents=True)
        self._request = request
        s3 = _s3_of(request["RoleArn"], endpoint)
        self._job = TrainingJob(request, work=work, s3=s3)
        self._status, self._secondary, self._reason = "InProgress", "Training", ""
        self._started = datetime.now(UTC)
        self._ended: datetime | None = None
        threading.Thread(target=self._run, daemon=True).start()

    def stop(self) -> None:
        self._status, self._secondary = "Stopping", "Stopping"
        self._job.stop()

    def state(self) -> dict[str, Any]:
        now = self._ended or datetime.now(UTC)
        metrics = self._job.metrics()
        state: dict[str, Any] = {
            "TrainingJobStatus": self._status,
            "SecondaryStatus": self._secondary,
            "TrainingStartTime": self._started,
            "LastModifiedTime": now,
            "AlgorithmSpecification": self._request["AlgorithmSpecification"],
            "SecondaryStatusTransitions": [
                {"Status": self._secondary, "StartTime": self._started, "StatusMessage": ""}
            ],
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

    def _run(self) -> None:
        try:
            self._job.run()
            self._status, self._secondary = "Completed", "Completed"
        except JobStoppedError:
            self._status, self._secondary = "Stopped", "Stopped"
        except JobFailedError as error:
            self._reason, self._status, self._secondary = str(error), "Failed", "Failed"
        except Exception as error:  # of the rehearsal itself: the job must not hang for ever
            traceback.print_exc()
            self._reason = f"InternalServerError: {error!r}"
            self._status, self._secondary = "Failed", "Failed"
        finally:
            self._ended = datetime.now(UTC)


class RunningSearch:
    """A search in a thread: its trials are jobs like any others."""

    def __init__(self, request: Mapping[str, Any], endpoint: str) -> None:
        self._request = request
        self._sagemaker: Any = boto3.client("sagemaker", endpoint_url=endpoint)
        self._status = "InProgress"
        self._stopped = threading.Event()
        self.trials: list[dict[str, Any]] = []
        threading.Thread(target=self._run, daemon=True).start()

    def stop(self) -> None:
        self._status = "Stopping"
        self._stopped.set()

    def state(self) -> dict[str, Any]:
        ended = [trial["TrainingJobStatus"] for trial in self.trials]
        judged = [trial for trial in self.trials if _objective(trial) is not None]
        state: dict[str, Any] = {
            "HyperParameterTuningJobStatus": self._status,
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
        state["BestTrainingJob"] = min(judged, key=_objective) if judged else None
        return state

    def _run(self) -> None:
        config = self._request["HyperParameterTuningJobConfig"]
        generator = random.Random(config.get("RandomSeed", 0))
        for number in range(1, config["ResourceLimits"]["MaxNumberOfTrainingJobs"] + 1):
            if self._stopped.is_set():
                break
            tuned = _draw(config["ParameterRanges"], generator)
            digits = f"{generator.getrandbits(32):08x}"
            name = f"{self._request['HyperParameterTuningJobName']}-{number:03d}-{digits}"
            self._run_trial(name, tuned, config["HyperParameterTuningJobObjective"])
        self._status = "Stopped" if self._stopped.is_set() else "Completed"

    def _run_trial(self, name: str, tuned: dict[str, str], objective: dict[str, str]) -> None:
        definition = self._request["TrainingJobDefinition"]
        own = {"_tuning_objective_metric": objective["MetricName"], **tuned}
        self._sagemaker.create_training_job(
            TrainingJobName=name,
            HyperParameters=definition["StaticHyperParameters"] | own,
            **{key: definition[key] for key in SAME if key in definition},
        )
        trial: dict[str, Any] = {"TrainingJobName": name, "TunedHyperParameters": tuned}
        trial |= {"TrainingJobStatus": "InProgress", "CreationTime": datetime.now(UTC)}
        self.trials.append(trial)
        while True:
            job = self._sagemaker.describe_training_job(TrainingJobName=name)
            trial["TrainingJobArn"] = job["TrainingJobArn"]
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
        drawn[each["Name"]] = str(generator.randint(low, high))
    for each in ranges.get("ContinuousParameterRanges", []):
        least, most, share = float(each["MinValue"]), float(each["MaxValue"]), generator.random()
        logarithmic = each.get("ScalingType") == "Logarithmic"
        value = least * (most / least) ** share if logarithmic else least + share * (most - least)
        drawn[each["Name"]] = repr(value)
    return drawn


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
