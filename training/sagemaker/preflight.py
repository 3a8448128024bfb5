"""What is looked at before SageMaker is asked for a job, a line on the screen for each check."""

import argparse
import math
from dataclasses import dataclass
from typing import Any

import boto3
from optuna.distributions import IntDistribution

from costs.estimate import BOOT_SECONDS, Estimate, estimate_training
from costs.prices import PriceError, load_prices
from infra.training_image import training_image
from training.launcher.checklist import BRIEF, CheckFailedError, Checklist, NotCheckedError
from training.launcher.deployment import Deployment, LaunchError
from training.launcher.machine_checks import memory_needed
from training.launcher.preflight import check_budget, check_dataset, check_weights
from training.sagemaker.request import Job
from training.search.space import SPACES
from training.settings import parse_arguments

EC2_TYPE = "c7i.large"  # whose rates are taken
GPU = ("ml.g", "ml.p")  # how types with one begin; no rate was measured on SageMaker's


@dataclass(frozen=True, kw_only=True)
class JobPlan:
    """What a job is expected to take; `failed` names the checks that say no."""

    estimate: Estimate
    failed: list[str]


def make_job_plan(
    deployment: Deployment, job: Job, train_arguments: list[str], *, trials: int, parallel: int
) -> JobPlan:
    """Make all checks for `trials` trainings, `parallel` at once.

    Raises LaunchError without a data set, for nothing can be said about time then.
    """
    checks = Checklist()
    photos = checks.require("data set", lambda: check_dataset(deployment, job.dataset))
    checks.require("weights", lambda: check_weights(deployment, job.arch))
    checks.require("image", lambda: _image(deployment, job))
    kind = "spot training job" if job.spot else "training job"
    needed = job.instances * parallel
    checks.look("quota", lambda: check_quota(deployment.session, job.instance_type, kind, needed))
    if not photos:
        raise LaunchError("not started, see above: data set")
    checks.look("memory", lambda: _memory(deployment, job, train_arguments, sum(photos)))
    estimate = estimate_job(job, train_arguments, sum(photos), trials=trials, parallel=parallel)
    checks.look("budget", lambda: check_budget(deployment, estimate.dollars, "sagemaker"))
    return JobPlan(estimate=estimate, failed=checks.failed)


def estimate_job(
    job: Job, train_arguments: list[str], photos: int, *, trials: int, parallel: int
) -> Estimate:
    """Time of `trials` trainings, `parallel` at once, and dollars without what managed spot saves.

    The trials of a search have the middle of the epochs that it tries. On a GPU it is the longest
    that all may take. Raises LaunchError for a machine type without a known price.
    """
    args = _parsed(job, train_arguments)
    prices = load_prices()
    epochs = _middle_epochs(args.mode) if trials > 1 else args.epochs
    alone = estimate_training(
        photos, job.arch, epochs, EC2_TYPE, prices, mode=args.mode, ensemble_size=args.ensemble_size
    )
    try:
        hour = prices.sagemaker_hour(job.instance_type, "training").dollars
    except PriceError as error:
        raise LaunchError(f"{error}: choose one of them with --instance-type") from error
    if job.instance_type.startswith(GPU):
        dollars = parallel * job.max_seconds / 3600 * job.instances * hour
        return Estimate(job.max_seconds, dollars, "no rate was measured: the longest it may take")
    seconds = BOOT_SECONDS + (alone.seconds - BOOT_SECONDS) / job.instances
    basis = alone.basis
    if job.instances > 1:
        basis += f"; shared by {job.instances} machines as if nothing were lost"
    if trials > 1:
        basis = f"{trials} trainings, {parallel} at once, each: {basis}"
    return Estimate(
        math.ceil(trials / parallel) * seconds,
        trials * seconds / 3600 * job.instances * hour,
        basis,
    )


def _parsed(job: Job, train_arguments: list[str]) -> argparse.Namespace:
    """What training.train makes of them."""
    places = ["--data", "-", "--weights", "-", "--output", "-", "--arch", job.arch]
    return parse_arguments([*places, *train_arguments])


def _memory(
    deployment: Deployment, job: Job, train_arguments: list[str], photos: int
) -> tuple[str, None]:
    """Whether training fits a machine, which has the memory of EC2's type of that name."""
    if job.instance_type.startswith(GPU):
        raise NotCheckedError("how much a GPU's own memory has to be was not measured")
    ec2: Any = deployment.session.client("ec2", config=BRIEF)
    name = job.instance_type.removeprefix("ml.")
    found = ec2.describe_instance_types(Filters=[{"Name": "instance-type", "Values": [name]}])
    if not found["InstanceTypes"]:
        raise NotCheckedError(f"EC2 knows no {name}")
    has = found["InstanceTypes"][0]["MemoryInfo"]["SizeInMiB"] / 1024
    args = _parsed(job, train_arguments)
    needed = memory_needed(args.mode, args.ensemble_size, photos)
    if has < needed:
        raise CheckFailedError(
            f"--mode {args.mode} needs {needed:.3g} GiB, {job.instance_type} has {has:g}: choose a "
            "larger --instance-type"
        )
    return f"{has:g} GiB, {needed:.3g} needed", None


def _middle_epochs(mode: str) -> int:
    """Of those that a search tries."""
    tried = SPACES[mode]["epochs"]
    assert isinstance(tried, IntDistribution)
    return (tried.low + tried.high) // 2


def _image(deployment: Deployment, job: Job) -> tuple[str, str]:
    try:
        image = training_image(job.instance_type, deployment.session.region_name)
    except ValueError as error:
        raise CheckFailedError(f"none for {job.instance_type}: {error}") from error
    return image, image


def check_quota(
    session: boto3.Session, instance_type: str, kind: str, needed: int
) -> tuple[str, None]:
    """Whether jobs of a kind may have `needed` machines at once, by the quota of that name.

    Raises CheckFailedError if not, NotCheckedError when there is no such quota.
    """
    name = f"{instance_type} for {kind} usage"
    quotas = session.client("service-quotas", config=BRIEF)
    pages = quotas.get_paginator("list_service_quotas").paginate(ServiceCode="sagemaker")
    found = [quota for page in pages for quota in page["Quotas"] if quota["QuotaName"] == name]
    if not found:
        raise NotCheckedError(f"no quota is called {name}")
    (quota,) = found
    if quota["Value"] < needed:
        raise CheckFailedError(
            f"{quota['Value']:g} of {name}, {needed} needed: run `aws service-quotas "
            f"request-service-quota-increase --service-code sagemaker --quota-code "
            f"{quota['QuotaCode']} --desired-value {needed}` and wait for the answer"
        )
    return f"{quota['Value']:g} of {name}, {needed} needed", None
