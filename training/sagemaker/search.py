"""A search for settings by SageMaker's automatic model tuning.

It writes the same best.json as training.hpo.
"""

import math
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from common.names import chosen_name, job_name_prefix
from training.flags import as_flags, parse
from training.launcher.deployment import Deployment, LaunchError
from training.launcher.follow import POLL_SECONDS, StatusLine
from training.sagemaker import PROGRAM
from training.sagemaker.request import (
    DryRunError,
    Job,
    RunSession,
    model_trainer,
    tuner,
)
from training.sagemaker.run import put_code, training_role
from training.search.results import plot_trials, trial_table, write_best
from training.search.space import SPACES, Range
from training.settings import Choices, Settings

if TYPE_CHECKING:
    from mypy_boto3_sagemaker import SageMakerClient

OVER = {"Completed", "Failed", "Stopped"}  # HyperParameterTuningJobStatus
# By TrainingJobStatus; SageMaker stops unpromising trials early.
STATES = {"Completed": TrialState.COMPLETE, "Stopped": TrialState.PRUNED}


def new_search_name() -> str:
    """Return a name of at most 32 characters, which is SageMaker's limit."""
    return f"{job_name_prefix(chosen_name())}{datetime.now(UTC):%y%m%d-%H%M%S}"


def is_search(name: str) -> bool:
    return name.startswith(job_name_prefix(chosen_name()))


def dry_request(deployment: Deployment, job: Job, trials: int, parallel: int) -> dict[str, Any]:
    """Return the parameters of CreateHyperParameterTuningJob; write and start nothing."""
    try:
        _tune(RunSession(deployment.session, deployment.bucket, dry=True), job, trials, parallel)
    except DryRunError as error:
        return error.request
    raise AssertionError("the SDK did not call CreateHyperParameterTuningJob")


def start_search(deployment: Deployment, job: Job, trials: int, parallel: int) -> None:
    """Upload the code and start the search."""
    put_code(deployment, job.run_id)
    _tune(RunSession(deployment.session, deployment.bucket), job, trials, parallel)


def _tune(session: RunSession, job: Job, trials: int, parallel: int) -> None:
    trainer = model_trainer(session, training_role(), job)
    # Settings are chosen on validation photos, and no trial is served.
    trainer.hyperparameters |= {"mode": job.work["mode"], "skip_test": "true", "int8": "no"}
    search = tuner(
        trainer,
        job.work["mode"],
        trials=trials,
        parallel=parallel,
        max_seconds=job.max_seconds,
        seed=1,
    )
    search.tune(inputs=trainer.input_data_config, job_name=job.run_id, wait=False)


def follow(deployment: Deployment, name: str, output: Path) -> bool:
    """Show the search until it ends; then print its trials, and write best.json and plots.

    Returns whether there is a best trial.
    """
    sagemaker = deployment.session.client("sagemaker")
    try:
        with StatusLine() as line:
            while True:
                search: Any = sagemaker.describe_hyper_parameter_tuning_job(
                    HyperParameterTuningJobName=name
                )
                if search["HyperParameterTuningJobStatus"] in OVER:
                    break
                line.show(_describe(search))
                time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        print(
            f"the search continues; get its results with `{PROGRAM} follow {name}`, stop it with "
            f"`{PROGRAM} stop {name}`"
        )
        return False
    return show(sagemaker, search, output)


def _describe(search: Mapping[str, Any]) -> str:
    """Return the number of trials by state, and the best value, in one line."""
    counters = search["TrainingJobStatusCounters"]
    words = {"Completed": "completed", "InProgress": "in progress", "Stopped": "stopped"}
    parts = [f"{counters[name]} {word}" for name, word in words.items()]
    if failed := counters["NonRetryableError"] + counters["RetryableError"]:
        parts.append(f"{failed} failed")
    best = search.get("BestTrainingJob", {}).get("FinalHyperParameterTuningJobObjectiveMetric")
    return ", ".join(parts) + (f"; best {best['Value']:.4f}" if best else "")


def show(sagemaker: "SageMakerClient", search: Mapping[str, Any], output: Path) -> bool:
    """Print the trials, and write best.json and plots; return whether there is a best trial."""
    name = search["HyperParameterTuningJobName"]
    settings = _settings(search["TrainingJobDefinition"]["StaticHyperParameters"])
    study = read_study(sagemaker, name, settings.mode)
    print(trial_table(study, "validation_loss", settings.mode))
    output.mkdir(parents=True, exist_ok=True)
    for file in plot_trials(study, "validation_loss", output / "plots"):
        print(file)
    best = output / "best.json"
    if not write_best(study, settings, best):
        reason = search.get("FailureReason", "no trial was completed")
        raise LaunchError(f"search {name}: {reason}")
    flags = f"--arch {settings.arch} -- --settings {best}"
    print(
        f"train with the best settings: `{PROGRAM} train {flags}` or "
        f"`python -m training.launch {flags}`"
    )
    return True


def read_study(sagemaker: "SageMakerClient", name: str, mode: str) -> optuna.Study:
    """Read the trials of a search into a study, as training.hpo makes it."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(study_name=name)
    pages = sagemaker.get_paginator("list_training_jobs_for_hyper_parameter_tuning_job").paginate(
        HyperParameterTuningJobName=name
    )
    jobs = [job for page in pages for job in page["TrainingJobSummaries"]]
    for job in sorted(jobs, key=lambda job: job["CreationTime"]):
        described = sagemaker.describe_training_job(TrainingJobName=job["TrainingJobName"])
        study.add_trial(_trial(job, described.get("FinalMetricDataList", []), SPACES[mode]))
    return study


def _trial(job: Mapping[str, Any], metrics: list[Any], space: Mapping[str, Range]) -> FrozenTrial:
    tuned = job["TunedHyperParameters"]
    objective = job.get("FinalHyperParameterTuningJobObjectiveMetric")
    state = STATES.get(job["TrainingJobStatus"], TrialState.FAIL)
    if objective is None:
        state = TrialState.FAIL
    latest = {each["MetricName"]: each["Value"] for each in metrics}
    return optuna.trial.create_trial(
        state=state,
        value=objective["Value"] if objective else None,
        params={name: _value(tuned[name], values) for name, values in space.items()},
        distributions=dict(space),
        user_attrs={"validation_accuracy": latest.get("validation:accuracy", math.nan)},
    )


def _value(text: str, values: Range) -> Any:
    """Convert a hyperparameter from SageMaker's text."""
    if isinstance(values, CategoricalDistribution):
        return next(choice for choice in values.choices if str(choice) == text)
    return round(float(text)) if isinstance(values, IntDistribution) else float(text)


def _settings(hyperparameters: Mapping[str, str]) -> Settings:
    """Parse the settings that all trials share."""
    own = {k: v for k, v in hyperparameters.items() if not k.startswith(("sagemaker_", "_"))}
    return parse(Choices, as_flags(own)).settings


def stop_search(deployment: Deployment, name: str) -> None:
    """Ask SageMaker to stop a search and its trials."""
    deployment.session.client("sagemaker").stop_hyper_parameter_tuning_job(
        HyperParameterTuningJobName=name
    )
    print(f"search {name} is stopping; get its results with `{PROGRAM} follow {name}`")
