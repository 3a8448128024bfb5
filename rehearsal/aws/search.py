"""Runs a SageMaker search: its trials, one after another, with settings drawn at random."""

import math
import random
import threading
import time
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import boto3

WAIT_SECONDS = 0.2
# What the definition of the trials has in common with the request for a training job.
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


class RunningSearch:
    """One search in a thread; its trials are jobs like any others."""

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
        return {
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
            # Our searches minimise the validation loss.
            "BestTrainingJob": min(judged, key=_objective, default=None),
        }

    def _run(self) -> None:
        try:
            self._run_trials()
            self._status = "Stopped" if self._stopped.is_set() else "Completed"
        except Exception as error:  # of the rehearsal itself: the search must not hang forever
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
        # A whole number stands for the interval up to the next one.
        drawn[each["Name"]] = str(min(math.floor(_between(low, high + 1, each, generator)), high))
    for each in ranges.get("ContinuousParameterRanges", []):
        least, most = float(each["MinValue"]), float(each["MaxValue"])
        drawn[each["Name"]] = repr(_between(least, most, each, generator))
    return drawn


def _between(
    least: float, most: float, range_: Mapping[str, str], generator: random.Random
) -> float:
    if range_.get("ScalingType") == "Logarithmic":
        return math.exp(generator.uniform(math.log(least), math.log(most)))
    return generator.uniform(least, most)
