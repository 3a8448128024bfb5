"""Checks before a run starts, and its estimate."""

import json
from dataclasses import dataclass
from typing import Literal

from common.outputs import NO_BUDGETS, stack_output
from common.run_record import Work
from common.storage import list_keys, list_objects
from costs.estimate import Estimate, estimate_training
from costs.prices import load_prices
from training.launcher.checklist import (
    BRIEF,
    CheckFailedError,
    Checklist,
    NotCheckedError,
    WarningError,
)
from training.launcher.deployment import Deployment, Groups, LaunchError
from training.launcher.machine_checks import (
    check_account_plan,
    check_instance_types,
    check_memory,
    check_quotas,
)
from training.settings import CHUNK_PHOTOS


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run will use and is expected to cost."""

    runtime: str  # prefix of the wheels
    chunks: int  # of features
    instance_type: str
    groups: Groups
    estimate: Estimate
    fallback_dollars: float | None  # the estimate on demand, if there is a fallback


def make_plan(
    deployment: Deployment,
    work: Work,
    *,
    runtime: str | None,
    busy: str | None,
) -> Plan:
    """Make all checks and estimate time and cost.

    `busy` says what occupies the group, if anything does. `runtime` is the prefix of the wheels
    that a resumed run began with, or None for the newest. Raises LaunchError after the last check
    if one failed.
    """
    checks = Checklist()
    groups = deployment.groups()
    checks.require("group", lambda: _group_idle(deployment, groups, busy))
    photos = checks.require("data set", lambda: check_dataset(deployment, work["dataset"]))
    checks.require("weights", lambda: check_weights(deployment, work["arch"]))
    wheels = checks.require("wheels", lambda: _wheels(deployment, runtime))
    types = checks.try_check("types", lambda: check_instance_types(deployment, groups))
    if types:
        checks.try_check("quota", lambda: check_quotas(deployment, groups, types))
        checks.try_check("plan", lambda: check_account_plan(deployment, types))
        checks.try_check(
            "memory", lambda: check_memory(types, work["mode"], work["ensemble_size"], photos)
        )
    checks.try_check("alerts", lambda: _alerts(deployment))
    estimates = _estimates(work, groups, sum(photos)) if photos else []
    if estimates:
        dollars = max(each.dollars for each in estimates)
        checks.try_check("budget", lambda: check_budget(deployment, dollars, "training"))
    if checks.failed or not (photos and wheels):
        raise LaunchError(f"not started, see above: {', '.join(checks.failed)}")
    first, *fallback = estimates
    return Plan(
        runtime=wheels,
        chunks=sum(-(-side // CHUNK_PHOTOS) for side in photos) if work["mode"] == "head" else 0,
        instance_type=groups.instance_types[0],
        groups=groups,
        estimate=first,
        fallback_dollars=fallback[0].dollars if fallback else None,
    )


def _estimates(work: Work, groups: Groups, photos: int) -> list[Estimate]:
    """Estimate the run for each group; other instance types cost about as much as the first."""
    return [
        estimate_training(
            photos,
            work["arch"],
            work["epochs"],
            groups.instance_types[0],
            load_prices(),
            mode=work["mode"],
            ensemble_size=work["ensemble_size"],
            purchase=purchase,
        )
        for purchase in groups.purchases
    ]


def _group_idle(deployment: Deployment, groups: Groups, busy: str | None) -> tuple[str, None]:
    if busy:
        raise CheckFailedError(busy)
    for group, process in groups.suspended:
        if process in ("ScheduledActions", "Terminate"):
            raise CheckFailedError(
                f"{process} of {group} is suspended, which disables the booked end: run `aws "
                f"autoscaling resume-processes --auto-scaling-group-name {group} "
                f"--scaling-processes {process}`"
            )
    return f"{', '.join(deployment.group_names)} at 0", None


def check_dataset(deployment: Deployment, name: str) -> tuple[str, list[int]]:
    """Check that the data set exists; return the numbers of training and of test photos."""
    key = f"datasets/{name}/manifest.json"
    if not _exists(deployment, key):
        raise CheckFailedError(f"{key} is missing: run `python -m data_prep all --name {name}`")
    content = deployment.s3.get_object(Bucket=deployment.bucket, Key=key)["Body"].read()
    sides: dict[str, dict[str, int]] = json.loads(content)["photos"]
    photos = [sum(by_count.values()) for by_count in sides.values()]
    return f"{name}, {sum(photos):,} photos", photos


def check_weights(deployment: Deployment, arch: str) -> tuple[str, None]:
    key = f"weights/{arch}.pth"
    if not _exists(deployment, key):
        raise CheckFailedError(f"{key} is missing: run `python -m data_prep weights --arch {arch}`")
    return key, None


def _wheels(deployment: Deployment, runtime: str | None) -> tuple[str, str]:
    """Return the prefix of the wheels that a machine will install."""
    if runtime:
        if not _exists(deployment, f"{runtime}requirements.txt"):
            raise CheckFailedError(f"{runtime} of this run has been deleted: start a new run")
        return runtime, runtime
    built = [
        (item["LastModified"], item["Key"])
        for item in list_objects(deployment.s3, deployment.bucket, "runtime/")
        if item["Key"].endswith("/requirements.txt")
    ]
    if not built:
        raise CheckFailedError("there are none: run `python -m training.runtime`")
    prefix = max(built)[1].removesuffix("requirements.txt")
    return prefix, prefix


def _exists(deployment: Deployment, key: str) -> bool:
    return key in list_keys(deployment.s3, deployment.bucket, key)


def _alerts(deployment: Deployment) -> tuple[str, None]:
    """Check that someone is notified of a run's end; a subscription has to be confirmed by mail.

    docs.aws.amazon.com/sns/latest/api/API_Subscription.html
    """
    topic = stack_output("BudgetStack", "AlertsTopicArn")
    sns = deployment.session.client("sns", config=BRIEF)
    pages = sns.get_paginator("list_subscriptions_by_topic").paginate(TopicArn=topic)
    found = [each["SubscriptionArn"] for page in pages for each in page["Subscriptions"]]
    confirmed = sum(each.startswith("arn:") for each in found)  # or PendingConfirmation, Deleted
    if not confirmed:
        pending = ", one awaits confirmation" if "PendingConfirmation" in found else ""
        raise WarningError(
            f"no confirmed subscription{pending}: run `aws sns subscribe --protocol email "
            f"--topic-arn {topic} --notification-endpoint you@example.com` and confirm AWS's mail"
        )
    return f"subscriptions: {confirmed} of {len(found)} confirmed", None


def check_budget(
    deployment: Deployment, dollars: float, part: Literal["training", "sagemaker"]
) -> tuple[str, None]:
    """Check that this month's budgets have enough left for the run.

    AWS updates the amounts spent with a delay of some hours.
    """
    names = stack_output("BudgetStack", "BudgetNames")
    if names == NO_BUDGETS:
        raise NotCheckedError("no budget: the stacks are deployed with budgets=no")
    name_of = dict(zip(("month", "training", "sagemaker"), names.split(","), strict=True))
    account = stack_output("TrainStack", "LauncherRoleArn").split(":")[4]
    budgets = deployment.session.client("budgets", config=BRIEF)
    notes = []
    for kind, setting in (("month", "monthly_budget_usd"), (part, f"{part}_budget_usd")):
        name = name_of[kind]
        budget = budgets.describe_budget(AccountId=account, BudgetName=name)["Budget"]
        limit = float(budget["BudgetLimit"]["Amount"])
        if "CalculatedSpend" not in budget:  # optional in the API
            raise NotCheckedError(f"AWS does not report the spending of {name}")
        spent = float(budget["CalculatedSpend"]["ActualSpend"]["Amount"])
        note = f"{kind}: ${max(limit - spent, 0):.2f} left of ${limit:.2f}"
        if limit - spent < dollars:
            raise CheckFailedError(
                f"{note}, ${dollars:.2f} needed: raise {setting} in cdk.json's context, then "
                "`npx cdk deploy TrainStack`, or wait for next month"
            )
        notes.append(note)
    return "; ".join(notes), None
