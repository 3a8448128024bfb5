"""Checks that EC2 can start the machines, and that the training fits their memory."""

import re
from typing import Any

from common.choices import Mode, Purchase
from training.launcher.checklist import BRIEF, CheckFailedError, NotCheckedError, WarningError
from training.launcher.deployment import Deployment, Groups

# Codes of EC2's vCPU quotas, and their instance families; graphics are G and VT:
# docs.aws.amazon.com/AWSEC2/latest/UserGuide/using-spot-limits.html
STANDARD = {"spot": "L-34B43A08", "on_demand": "L-1216C47A"}
GRAPHICS = {"spot": "L-3819A6DF", "on_demand": "L-DB2E81BA"}
STANDARD_FAMILIES = set("acdhimrtz")
OTHER_FAMILIES = {"dl", "hpc", "inf", "mac", "trn"}  # begin with one of these letters
# Memory of a machine for training.train and everything else on it. Training a head peaks at 2.3 GB
# with 10,000 photos (tests/training/test_memory_limit.py), every layer at 4.4 GB, and every layer
# of two networks at 7.1 GB.
HEAD_GIB, FINETUNE_GIB, NETWORK_GIB = 4.0, 2.5, 2.6
# Features of a photo beyond HEAD_PHOTOS, by the widest backbone, ResNet50: two views of 7,808
# features of two bytes, held twice for a moment.
HEAD_PHOTOS, FEATURES_GIB = 10_000, 2 * 2 * 7808 * 2 / 2**30


def check_instance_types(deployment: Deployment, groups: Groups) -> tuple[str, list[Any]]:
    """Describe those of the group's types that the region has, in the group's order."""
    ec2: Any = deployment.session.client("ec2", config=BRIEF)
    # A filter, because InstanceTypes=[...] fails if the region lacks one of them.
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


def check_quotas(deployment: Deployment, groups: Groups, types: list[Any]) -> tuple[str, None]:
    """Check the vCPU quota of the first group; warn if the fallback's is too small."""
    first, *fallback = groups.purchases
    notes = [_quota(deployment, first, types)]
    for purchase in fallback:
        try:
            notes.append(_quota(deployment, purchase, types))
        except CheckFailedError as error:
            raise WarningError(f"{notes[0]}; the fallback cannot start: {error}") from error
    return "; ".join(notes), None


def _quota(deployment: Deployment, purchase: Purchase, types: list[Any]) -> str:
    """Check that each quota allows the largest type that counts towards it.

    Other machines of the account, which count as well, are not considered.
    """
    needed: dict[str, int] = {}
    for each in types:
        code = quota_code(each["InstanceType"], purchase)
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
                f"--desired-value {vcpus}` and wait for approval"
            )
        notes.append(f"{limit:g} vCPUs for {name}, {vcpus} needed")
    return "; ".join(notes)


def quota_code(instance_type: str, purchase: Purchase) -> str:
    """Return the code of a type's vCPU quota; raises NotCheckedError for an unknown family."""
    letters = re.match("[a-z]*", instance_type.split(".")[0])
    family = letters.group() if letters else ""
    if family.startswith(("g", "vt")):
        return GRAPHICS[purchase]
    if family[:1] in STANDARD_FAMILIES and family not in OTHER_FAMILIES:
        return STANDARD[purchase]
    raise NotCheckedError(f"look up the quota of {instance_type} in the Service Quotas console")


def memory_needed(mode: Mode, ensemble_size: int, photos: int) -> float:
    """Return the memory in GiB that a machine without a GPU needs."""
    if mode == "finetune":
        return FINETUNE_GIB + ensemble_size * NETWORK_GIB
    return HEAD_GIB + max(photos - HEAD_PHOTOS, 0) * FEATURES_GIB


def check_memory(
    types: list[Any], mode: Mode, ensemble_size: int, photos: list[int] | None
) -> tuple[str, None]:
    """Check that the training fits every type, as the group may start any of them."""
    needed = memory_needed(mode, ensemble_size, sum(photos or []))
    if mode == "finetune":
        types = [each for each in types if "GpuInfo" not in each]  # a GPU has its own memory
        if not types:
            raise NotCheckedError("the memory needed on a GPU has not been measured")
    have = {each["InstanceType"]: each["MemoryInfo"]["SizeInMiB"] / 1024 for each in types}
    small = ", ".join(name for name, gib in have.items() if gib < needed)
    if small:
        raise CheckFailedError(
            f"--mode {mode} needs {needed:.3g} GiB, too much for {small}: leave these types out of "
            "instance_types in cdk.json's context, then `npx cdk deploy TrainStack`"
        )
    return f"{min(have.values()):g} GiB at least, {needed:.3g} needed", None


def check_account_plan(deployment: Deployment, types: list[Any]) -> tuple[str, None]:
    """Check that the account's plan allows all types.

    On the free plan, EC2 starts only types that are eligible for the free tier. Whether a group
    that also has other types still starts a machine is unknown.
    """
    # Its API is in this region only.
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
