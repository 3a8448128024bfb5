"""Checks before a job or a search starts, and its estimate."""

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

EC2_TYPE = "c7i.large"  # whose rates the estimate uses
GPU = ("ml.g", "ml.p")  # prefixes of types with a GPU, whose rates have not been measured


@dataclass(frozen=True, kw_only=True)
class JobPlan:
    """The estimate of a job, and the names of the failed checks."""

    estimate: Estimate
    failed: list[str]


def make_job_plan(deployment: Deployment, job: Job, *, trials: int, parallel: int) -> JobPlan:
    """Make all checks for `trials` trainings, `parallel` at a time, and estimate time and cost.

    Raises LaunchError without a data set, as the estimate needs its size.
    """
    checks = Checklist()
    photos = checks.require("data set", lambda: check_dataset(deployment, job.work["dataset"]))
    checks.require("weights", lambda: check_weights(deployment, job.work["arch"]))
    checks.require("image", lambda: _image(deployment, job))
    kind = "spot training job" if job.spot else "training job"
    needed = job.instances * parallel
    checks.try_check(
        "quota", lambda: check_quota(deployment.session, job.instance_type, kind, needed)
    )
    if not photos:
        raise LaunchError("not started, see above: data set")
    checks.try_check("memory", lambda: _memory(deployment, job, sum(photos)))
    estimate = estimate_job(job, sum(photos), trials=trials, parallel=parallel)
    checks.try_check("budget", lambda: check_budget(deployment, estimate.dollars, "sagemaker"))
    return JobPlan(estimate=estimate, failed=checks.failed)


def estimate_job(job: Job, photos: int, *, trials: int, parallel: int) -> Estimate:
    """Estimate `trials` trainings, `parallel` at a time, before savings by managed spot training.

    A search is estimated with the middle of its range of epochs. On a GPU, the estimate is the time
    limit. Raises LaunchError for an instance type without a known price.
    """
    work, prices = job.work, load_prices()
    epochs = _middle_epochs(work["mode"]) if trials > 1 else work["epochs"]
    alone = estimate_training(
        photos,
        work["arch"],
        epochs,
        EC2_TYPE,
        prices,
        mode=work["mode"],
        ensemble_size=work["ensemble_size"],
    )
    try:
        hour = prices.sagemaker_hour(job.instance_type, "training").dollars
    except PriceError as error:
        raise LaunchError(f"{error}: choose one of them with --instance-type") from error
    if job.instance_type.startswith(GPU):
        dollars = parallel * job.max_seconds / 3600 * job.instances * hour
        return Estimate(job.max_seconds, dollars, "the time limit, as no rate has been measured")
    seconds = BOOT_SECONDS + (alone.seconds - BOOT_SECONDS) / job.instances
    basis = alone.basis
    if job.instances > 1:
        basis += f"; shared by {job.instances} machines without losses"
    if trials > 1:
        basis = f"{trials} trainings, {parallel} at a time, each: {basis}"
    return Estimate(
        math.ceil(trials / parallel) * seconds,
        trials * seconds / 3600 * job.instances * hour,
        basis,
    )


def _memory(deployment: Deployment, job: Job, photos: int) -> tuple[str, None]:
    """Check that the training fits a machine, which has the memory of the EC2 type."""
    if job.instance_type.startswith(GPU):
        raise NotCheckedError("the memory needed on a GPU has not been measured")
    ec2: Any = deployment.session.client("ec2", config=BRIEF)
    name = job.instance_type.removeprefix("ml.")
    found = ec2.describe_instance_types(Filters=[{"Name": "instance-type", "Values": [name]}])
    if not found["InstanceTypes"]:
        raise NotCheckedError(f"EC2 has no {name}")
    gib = found["InstanceTypes"][0]["MemoryInfo"]["SizeInMiB"] / 1024
    mode, size = job.work["mode"], job.work["ensemble_size"]
    needed = memory_needed(mode, size, photos)
    if gib < needed:
        raise CheckFailedError(
            f"--mode {mode} needs {needed:.3g} GiB, {job.instance_type} has {gib:g}: choose a "
            "larger --instance-type"
        )
    return f"{gib:g} GiB, {needed:.3g} needed", None


def _middle_epochs(mode: str) -> int:
    epochs = SPACES[mode]["epochs"]
    assert isinstance(epochs, IntDistribution)
    return (epochs.low + epochs.high) // 2


def _image(deployment: Deployment, job: Job) -> tuple[str, str]:
    try:
        image = training_image(job.instance_type, deployment.session.region_name)
    except ValueError as error:
        raise CheckFailedError(f"there is none for {job.instance_type}: {error}") from error
    return image, image


def check_quota(
    session: boto3.Session, instance_type: str, kind: str, needed: int
) -> tuple[str, None]:
    """Check the quota of `needed` machines at a time for jobs of a kind.

    Raises CheckFailedError if it is too small, NotCheckedError if there is no such quota.
    """
    name = f"{instance_type} for {kind} usage"
    quotas = session.client("service-quotas", config=BRIEF)
    pages = quotas.get_paginator("list_service_quotas").paginate(ServiceCode="sagemaker")
    found = [quota for page in pages for quota in page["Quotas"] if quota["QuotaName"] == name]
    if not found:
        raise NotCheckedError(f"there is no quota {name}")
    (quota,) = found
    if quota["Value"] < needed:
        raise CheckFailedError(
            f"{quota['Value']:g} of {name}, {needed} needed: run `aws service-quotas "
            f"request-service-quota-increase --service-code sagemaker --quota-code "
            f"{quota['QuotaCode']} --desired-value {needed}` and wait for approval"
        )
    return f"{quota['Value']:g} of {name}, {needed} needed", None
