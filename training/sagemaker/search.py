"""A search over settings by SageMaker's tuner; its end is the same best.json as training.hpo's."""

import math
import time
from argparse import Namespace
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from common.names import chosen_name, job_name_prefix
from training.launcher.deployment import Deployment, LaunchError
from training.launcher.follow import POLL_SECONDS, StatusLine
from training.sagemaker.preflight import JobPlan
from training.sagemaker.request import (
    DryRunError,
    Job,
    RunSession,
    model_trainer,
    tuner,
)
from training.sagemaker.run import PROGRAM, put_code, training_role
from training.search.results import plot_trials, trial_table, write_best
from training.search.space import SPACES, Range
from training.settings import Settings, as_flags, parse_arguments

if TYPE_CHECKING:
    from mypy_boto3_sagemaker import SageMakerClient

OVER = {"Completed", "Failed", "Stopped"}  # HyperParameterTuningJobStatus
# By TrainingJobStatus; one that SageMaker stopped early was no good.
STATES = {"Completed": TrialState.COMPLETE, "Stopped": TrialState.PRUNED}


def new_search_name() -> str:
    """At most 32 characters, as SageMaker wants it."""
    return f"{job_name_prefix(chosen_name())}{datetime.now(UTC):%y%m%d-%H%M%S}"


def is_search(name: str) -> bool:
    return name.startswith(job_name_prefix(chosen_name()))


def dry_request(deployment: Deployment, job: Job, args: Namespace) -> dict[str, Any]:
    """CreateHyperParameterTuningJob's parameters; nothing is written or started."""
    try:
        _tune(RunSession(deployment.session, deployment.bucket, dry=True), job, args)
    except DryRunError as error:
        return error.request
    raise AssertionError("SageMaker was not asked for a search")


def start_search(deployment: Deployment, job: Job, args: Namespace, _: JobPlan) -> None:
    """Store the code that the trials run, and start them."""
    put_code(deployment, job.run_id)
    _tune(RunSession(deployment.session, deployment.bucket), job, args)


def _tune(session: RunSession, job: Job, args: Namespace) -> None:
    trainer = model_trainer(session, training_role(), job)
    # The test photos are not for choosing; no trial is served.
    trainer.hyperparameters |= {"mode": args.mode, "skip_test": "true", "int8": "no"}
    search = tuner(
        trainer,
        args.mode,
        trials=args.trials,
        parallel=args.parallel,
        max_seconds=job.max_seconds,
        seed=1,
    )
    search.tune(inputs=trainer.input_data_config, job_name=job.run_id, wait=False)


def follow(deployment: Deployment, name: str, output: Path) -> bool:
    """Show the search until it ends, its trials, and write best.json and plots to `output`.

    Returns whether there is a best trial.
    """
    sagemaker = deployment.session.client("sagemaker")
    line = StatusLine()
    try:
        while True:
            search: Any = sagemaker.describe_hyper_parameter_tuning_job(
                HyperParameterTuningJobName=name
            )
            if search["HyperParameterTuningJobStatus"] in OVER:
                break
            line.show(_describe(search))
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        line.close()
        print(
            f"the search goes on without you; see its end with `{PROGRAM} follow {name}`, end it "
            f"with `{PROGRAM} stop {name}`"
        )
        return False
    line.close()
    return show(sagemaker, search, output)


def _describe(search: Mapping[str, Any]) -> str:
    """One line: trials by state, and the best value so far."""
    counters = search["TrainingJobStatusCounters"]
    words = {"Completed": "completed", "InProgress": "in progress", "Stopped": "stopped"}
    parts = [f"{counters[name]} {word}" for name, word in words.items()]
    if failed := counters["NonRetryableError"] + counters["RetryableError"]:
        parts.append(f"{failed} failed")
    best = search.get("BestTrainingJob", {}).get("FinalHyperParameterTuningJobObjectiveMetric")
    return ", ".join(parts) + (f"; best {best['Value']:.4f}" if best else "")


def show(sagemaker: "SageMakerClient", search: Mapping[str, Any], output: Path) -> bool:
    """Print the trials, write what is best and plots; returns whether there is a best trial."""
    name = search["HyperParameterTuningJobName"]
    static = search["TrainingJobDefinition"]["StaticHyperParameters"]
    start = _settings(static)
    study = read_study(sagemaker, name, start.mode)
    print(trial_table(study, "validation_loss", start.mode))
    output.mkdir(parents=True, exist_ok=True)
    for file in plot_trials(study, "validation_loss", output / "plots"):
        print(file)
    best = output / "best.json"
    if not write_best(study, start, best):
        reason = search.get("FailureReason", "no trial was completed")
        raise LaunchError(f"search {name}: {reason}")
    print(
        f"train with the best settings: `{PROGRAM} train --arch {start.arch} -- --settings {best}`"
        f" or `python -m training.launch --arch {start.arch} -- --settings {best}`"
    )
    return True


def read_study(sagemaker: "SageMakerClient", name: str, mode: str) -> optuna.Study:
    """The trials of a search as training.hpo keeps its own."""
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
    """A hyperparameter, which SageMaker keeps as text."""
    if isinstance(values, CategoricalDistribution):
        return next(choice for choice in values.choices if str(choice) == text)
    return round(float(text)) if isinstance(values, IntDistribution) else float(text)


def _settings(hyperparameters: Mapping[str, str]) -> Settings:
    """What all trials have; a size that is not given is the data set's, as in the trials."""
    own = {k: v for k, v in hyperparameters.items() if not k.startswith(("sagemaker_", "_"))}
    places = ["--data", "-", "--weights", "-", "--output", "-"]
    args = parse_arguments([*places, *as_flags(own)])
    return Settings(**{name: getattr(args, name) for name in Settings.__dataclass_fields__})


def stop_search(deployment: Deployment, name: str) -> None:
    """Ask SageMaker to end a search and its trials."""
    deployment.session.client("sagemaker").stop_hyper_parameter_tuning_job(
        HyperParameterTuningJobName=name
    )
    print(f"search {name} was asked to stop; see its end with `{PROGRAM} follow {name}`")
