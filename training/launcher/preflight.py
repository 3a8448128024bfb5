"""What is looked at before a run starts, a line on the screen for each check."""

import json
from dataclasses import dataclass
from typing import Literal

from common.outputs import NO_BUDGETS, stack_output
from common.run_record import Mode
from common.storage import list_keys
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
    """What a run will use and cost."""

    runtime: str  # prefix of the wheels
    chunks: int  # of features
    instance_type: str
    groups: Groups
    estimate: Estimate
    fallback_dollars: float | None  # the same on demand, where the stacks fall back


def make_plan(
    deployment: Deployment,
    *,
    dataset: str,
    arch: str,
    epochs: int,
    mode: Mode,
    ensemble_size: int,
    runtime: str | None,
    at_work: str | None,
) -> Plan:
    """Make all checks; `at_work` says what the group is busy with, if it is.

    `runtime` is the prefix of the wheels that a run began with; None, the newest. Raises
    LaunchError after the last check when one failed.
    """
    checks = Checklist()
    groups = deployment.groups()
    checks.require("group", lambda: _group_idle(deployment, groups, at_work))
    photos = checks.require("data set", lambda: check_dataset(deployment, dataset))
    checks.require("weights", lambda: check_weights(deployment, arch))
    wheels = checks.require("wheels", lambda: _wheels(deployment, runtime))
    types = checks.look("types", lambda: check_instance_types(deployment, groups))
    if types:
        checks.look("quota", lambda: check_quotas(deployment, groups, types))
        checks.look("plan", lambda: check_account_plan(deployment, types))
        checks.look("memory", lambda: check_memory(types, mode, ensemble_size, photos))
    checks.look("alerts", lambda: _alerts(deployment))
    estimate, fallback_dollars = None, None
    if photos:
        first, *fallback = (
            estimate_training(
                sum(photos),
                arch,
                epochs,
                groups.instance_types[0],  # one of the others costs about as much
                load_prices(),
                mode=mode,
                ensemble_size=ensemble_size,
                purchase=purchase,
            )
            for purchase in groups.purchases
        )
        estimate, fallback_dollars = first, fallback[0].dollars if fallback else None
        dollars = max(each.dollars for each in (first, *fallback))
        checks.look("budget", lambda: check_budget(deployment, dollars, "training"))
    if checks.failed or not (photos and wheels and estimate):
        raise LaunchError(f"not started, see above: {', '.join(checks.failed)}")
    return Plan(
        runtime=wheels,
        chunks=sum(-(-side // CHUNK_PHOTOS) for side in photos) if mode == "head" else 0,
        instance_type=groups.instance_types[0],
        groups=groups,
        estimate=estimate,
        fallback_dollars=fallback_dollars,
    )


def _group_idle(deployment: Deployment, groups: Groups, at_work: str | None) -> tuple[str, None]:
    if at_work:
        raise CheckFailedError(at_work)
    for group, process in groups.suspended:
        if process in ("ScheduledActions", "Terminate"):
            raise CheckFailedError(
                f"{process} of {group} suspended, so the booked end would not come: run `aws "
                f"autoscaling resume-processes --auto-scaling-group-name {group} "
                f"--scaling-processes {process}`"
            )
    return f"{', '.join(deployment.group_names)} at 0", None


def check_dataset(deployment: Deployment, name: str) -> tuple[str, list[int]]:
    """Photos of the training and of the test side."""
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
    """The prefix of the wheels that a machine will install."""
    if runtime:
        if not _exists(deployment, f"{runtime}requirements.txt"):
            raise CheckFailedError(f"{runtime}, which the run began with, is gone: start a new run")
        return runtime, runtime
    pages = deployment.s3.get_paginator("list_objects_v2").paginate(
        Bucket=deployment.bucket, Prefix="runtime/"
    )
    built = [
        (item["LastModified"], item["Key"])
        for page in pages
        for item in page.get("Contents", [])
        if item["Key"].endswith("/requirements.txt")
    ]
    if not built:
        raise CheckFailedError("none for the machine: run `python -m training.runtime`")
    prefix = max(built)[1].removesuffix("requirements.txt")
    return prefix, prefix


def _exists(deployment: Deployment, key: str) -> bool:
    return key in list_keys(deployment.s3, deployment.bucket, key)


def _alerts(deployment: Deployment) -> tuple[str, None]:
    """Whether anybody hears how a run ends; an address does once it has confirmed AWS's mail.

    docs.aws.amazon.com/sns/latest/api/API_Subscription.html
    """
    topic = stack_output("BudgetStack", "AlertsTopicArn")
    sns = deployment.session.client("sns", config=BRIEF)
    pages = sns.get_paginator("list_subscriptions_by_topic").paginate(TopicArn=topic)
    found = [each["SubscriptionArn"] for page in pages for each in page["Subscriptions"]]
    confirmed = sum(each.startswith("arn:") for each in found)  # or PendingConfirmation, Deleted
    if not confirmed:
        waiting = (
            ", a subscription waits for confirmation" if "PendingConfirmation" in found else ""
        )
        raise WarningError(
            f"no one hears of them{waiting}: run `aws sns subscribe --protocol email --topic-arn "
            f"{topic} --notification-endpoint you@example.com` and confirm the mail that comes"
        )
    return f"subscriptions: {confirmed} of {len(found)} confirmed", None


def check_budget(
    deployment: Deployment, dollars: float, part: Literal["training", "sagemaker"]
) -> tuple[str, None]:
    """Whether the run fits into what is left this month of the budgets it counts to.

    AWS updates what is spent some hours late.
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
            raise NotCheckedError(f"AWS does not say what is spent of {name}")
        spent = float(budget["CalculatedSpend"]["ActualSpend"]["Amount"])
        note = f"{kind}: ${max(limit - spent, 0):.2f} left of ${limit:.2f}"
        if limit - spent < dollars:
            raise CheckFailedError(
                f"{note}, ${dollars:.2f} needed: raise {setting} in cdk.json's context, then "
                "`npx cdk deploy TrainStack`, or wait for next month"
            )
        notes.append(note)
    return "; ".join(notes), None
