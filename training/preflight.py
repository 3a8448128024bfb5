"""What is looked at before a run starts, a line on the screen for each check."""

import json
import re
from dataclasses import dataclass
from typing import Any, Literal

from botocore.config import Config

from costs.estimate import Estimate, Mode, estimate_training
from costs.prices import Purchase, load_prices
from infra.outputs import NO_BUDGETS, stack_output
from training.checklist import CheckFailedError, Checklist, NotCheckedError, WarningError
from training.deployment import Deployment, Groups, LaunchError
from training.settings import CHUNK_PHOTOS
from training.transfer import list_keys

# vCPU quotas of EC2. Their names, and which families count to which:
# docs.aws.amazon.com/AWSEC2/latest/UserGuide/using-spot-limits.html; G and VT are graphics.
STANDARD = {"spot": "L-34B43A08", "on_demand": "L-1216C47A"}
GRAPHICS = {"spot": "L-3819A6DF", "on_demand": "L-DB2E81BA"}
STANDARD_FAMILIES = set("acdhimrtz")
OTHER_FAMILIES = {"dl", "hpc", "inf", "mac", "trn"}  # though they begin with one of these letters
# Memory of a machine, for training.train and all else that runs there. A head peaks at 2.3 GB with
# 10,000 photos (tests/test_training_memory.py); every layer at 4.4 GB, and 7.1 with two members.
HEAD_GIB, FINETUNE_GIB, MEMBER_GIB = 4.0, 2.5, 2.6
# Of ResNet50, the widest: two views of 7,808 features, two bytes each, for a moment twice.
HEAD_PHOTOS, FEATURES_GIB = 10_000, 2 * 2 * 7808 * 2 / 2**30
# A check that may be left out is not worth a long wait.
BRIEF = Config(connect_timeout=5, read_timeout=10, retries={"total_max_attempts": 2})


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
    members: int,
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
    types = checks.look("types", lambda: _instance_types(deployment, groups))
    if types:
        checks.look("quota", lambda: _quotas(deployment, groups, types))
        checks.look("plan", lambda: _account_plan(deployment, types))
        checks.look("memory", lambda: _memory(types, mode, members, photos))
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
                members=members,
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


def _instance_types(deployment: Deployment, groups: Groups) -> tuple[str, list[Any]]:
    """What EC2 knows about each of the group's types that the region has, in the group's order."""
    ec2: Any = deployment.session.client("ec2", config=BRIEF)
    # By filter: asked for by name, one type that the region lacks would fail the whole call.
    pages = ec2.get_paginator("describe_instance_types").paginate(
        Filters=[{"Name": "instance-type", "Values": list(groups.instance_types)}]
    )
    found = {each["InstanceType"]: each for page in pages for each in page["InstanceTypes"]}
    types = [found[name] for name in groups.instance_types if name in found]
    missing = ", ".join(name for name in groups.instance_types if name not in found)
    region = ec2.meta.region_name
    if not types:
        raise CheckFailedError(
            f"{region} has no {missing}: set instance_types in cdk.json's context to "
            "types that it has, then `npx cdk deploy TrainStack`"
        )
    vcpus = max(each["VCpuInfo"]["DefaultVCpus"] for each in types)
    lacking = f"; {region} has no {missing}" if missing else ""
    return f"{', '.join(found)}; at most {vcpus} vCPUs{lacking}", types


def _quotas(deployment: Deployment, groups: Groups, types: list[Any]) -> tuple[str, None]:
    """Of the first way to buy; where that of the fallback is too small, a warning."""
    first, *fallback = groups.purchases
    notes = [_quota(deployment, first, types)]
    for purchase in fallback:
        try:
            notes.append(_quota(deployment, purchase, types))
        except CheckFailedError as error:
            raise WarningError(f"{notes[0]}; no fallback on demand: {error}") from error
    return "; ".join(notes), None


def _quota(deployment: Deployment, purchase: Purchase, types: list[Any]) -> str:
    """Whether the largest type of each kind fits; what runs elsewhere in the account counts too."""
    needed: dict[str, int] = {}
    for each in types:
        code = _quota_code(each["InstanceType"], purchase)
        needed[code] = max(needed.get(code, 0), each["VCpuInfo"]["DefaultVCpus"])
    quotas = deployment.session.client("service-quotas", config=BRIEF)
    notes = []
    for code, vcpus in needed.items():
        quota = quotas.get_service_quota(ServiceCode="ec2", QuotaCode=code)["Quota"]
        name, limit = quota["QuotaName"], quota["Value"]
        if limit < vcpus:
            raise CheckFailedError(
                f"{limit:g} vCPUs for {name}, {vcpus} needed: run `aws service-quotas "
                f"request-service-quota-increase --service-code ec2 --quota-code {code} "
                f"--desired-value {vcpus}` and wait for the answer"
            )
        notes.append(f"{limit:g} vCPUs for {name}, {vcpus} needed")
    return "; ".join(notes)


def _quota_code(instance_type: str, purchase: Purchase) -> str:
    letters = re.match("[a-z]*", instance_type.split(".")[0])
    family = letters.group() if letters else ""
    if family.startswith(("g", "vt")):
        return GRAPHICS[purchase]
    if family[:1] in STANDARD_FAMILIES and family not in OTHER_FAMILIES:
        return STANDARD[purchase]
    raise NotCheckedError(f"look up the quota of {instance_type} in the Service Quotas console")


def memory_needed(mode: Mode, members: int, photos: int) -> float:
    """GiB that a machine without a GPU needs in all."""
    if mode == "finetune":
        return FINETUNE_GIB + members * MEMBER_GIB
    return HEAD_GIB + max(photos - HEAD_PHOTOS, 0) * FEATURES_GIB


def _memory(
    types: list[Any], mode: Mode, members: int, photos: list[int] | None
) -> tuple[str, None]:
    """Whether training fits each type: the group takes any of them."""
    needed = memory_needed(mode, members, sum(photos or []))
    if mode == "finetune":
        types = [each for each in types if "GpuInfo" not in each]  # where its own memory counts
        if not types:
            raise NotCheckedError("how much a GPU's own memory has to be was not measured")
    have = {each["InstanceType"]: each["MemoryInfo"]["SizeInMiB"] / 1024 for each in types}
    small = ", ".join(name for name, gib in have.items() if gib < needed)
    if small:
        raise CheckFailedError(
            f"--mode {mode} needs {needed:.3g} GiB, more than there are on {small}: leave these "
            "out of instance_types in cdk.json's context, then `npx cdk deploy TrainStack`"
        )
    return f"{min(have.values()):g} GiB at least, {needed:.3g} needed", None


def _account_plan(deployment: Deployment, types: list[Any]) -> tuple[str, None]:
    """Whether the account may start all of these types.

    To an account on the free plan EC2 refuses types that are not free-tier-eligible; that a group
    with both kinds still starts a machine is not known.
    """
    # The service is in one region only.
    free_tier = deployment.session.client("freetier", region_name="us-east-1", config=BRIEF)
    plan = free_tier.get_account_plan_state()
    if plan["accountPlanType"] != "FREE":
        return "paid, any type", None
    if plan["accountPlanStatus"] == "EXPIRED":
        raise CheckFailedError("the free plan has expired: upgrade it in the Billing console")
    refused = [each["InstanceType"] for each in types if not each["FreeTierEligible"]]
    if refused:
        raise CheckFailedError(
            f"the free plan does not allow {', '.join(refused)}: set "
            '"instance_types": "c7i-flex.large,m7i-flex.large" in cdk.json\'s context, then '
            "`npx cdk deploy TrainStack`"
        )
    return "free, which allows these types", None


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
