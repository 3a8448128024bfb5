"""What each type of CloudFormation resource of our stacks costs in a month without work.

A type that is in none of the tables is an error, so that no new resource can be forgotten.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from costs.estimate import HOURS_PER_MONTH

GIB = 2**30
Resource = dict[str, Any]  # the properties of one resource, as in a template

# Bytes, measured in November 2026 unless a comment says otherwise.
PHOTO_BYTES = 20_000  # packed, 224 pixels: 8,700 on 6,749 real photos, 19,900 on synthetic ones
FEATURE_BYTES = 15_616  # a photo: 3,904 features of ResNet50, two views, float16
MODEL_BYTES = 1.0e8  # ResNet50 as ONNX, 94 MB of float32, and the head
WEIGHT_BYTES = 1.2e8  # ResNet50 102 MB, EfficientNet-Lite0 18 MB
WHEEL_BYTES = 4.0e8  # at most: torch for the CPU about 200 MB, all others 130 MB compressed
LOG_BYTES = 5.0e6  # a run's log and access log, at most
IMAGE_BYTES = 1.2e8  # compressed: Python's base image about 50 MB, the packages 52 MB
IMAGES = 3  # each deploy of a changed serving/ leaves one more
PUT_REQUESTS, GET_REQUESTS = 1_000, 10_000  # somebody browsing the bucket, each deploy


class UnknownCostError(ValueError):
    """The cost of an idle resource is not known; the message is one line."""


@dataclass(frozen=True)
class Contents:
    """What the bucket holds: photos of the data set, and runs whose models are kept."""

    photos: int
    runs: int


@dataclass(frozen=True)
class Use:
    """What a month of idling uses of something that has a price.

    `price` is a name in the price file's `other`, or the type of a SageMaker machine.
    """

    name: str
    quantity: float
    unit: str
    price: str
    basis: str


def bucket_uses(buckets: Sequence[Resource], contents: Contents) -> list[Use]:
    """The data bucket, whose accesses are logged, and the bucket of these logs."""
    if sorted("LoggingConfiguration" in bucket for bucket in buckets) != [False, True]:
        raise UnknownCostError(
            f"{len(buckets)} S3 buckets: contents are known only for the data bucket and its logs"
        )
    dataset = contents.photos * PHOTO_BYTES
    models, logs = contents.runs * MODEL_BYTES, contents.runs * LOG_BYTES
    features = contents.photos * FEATURE_BYTES
    each_feature = f"{FEATURE_BYTES / 1e3:.0f} kB a photo, ResNet50; deleted after 14 days"
    stored = [
        (f"data set, {contents.photos:,} photos", dataset, f"{PHOTO_BYTES / 1e3:g} kB a photo"),
        ("weights of two backbones", WEIGHT_BYTES, f"{WEIGHT_BYTES / 1e6:g} MB"),
        ("wheels of a machine", WHEEL_BYTES, f"{WHEEL_BYTES / 1e6:g} MB"),
        (f"models of {contents.runs} runs", models, f"{MODEL_BYTES / 1e6:g} MB each, ResNet50"),
        ("checkpoints of the newest run", features, each_feature),
        ("old versions", dataset + WHEEL_BYTES, "data set and wheels again; deleted after 30 days"),
        ("access logs", logs, f"{LOG_BYTES / 1e6:g} MB a run; deleted after 90 days"),
    ]
    requests = "somebody browsing, a deploy or two"
    return [
        *(
            Use(f"S3, {name}", size / GIB, "GiB-month", "s3_standard_gib_month", basis)
            for name, size, basis in stored
        ),
        Use("S3, writing and listing", PUT_REQUESTS, "request", "s3_put_request", requests),
        Use("S3, reading", GET_REQUESTS, "request", "s3_get_request", requests),
    ]


def log_uses(groups: Sequence[Resource], contents: Contents) -> list[Use]:
    size = contents.runs * LOG_BYTES / GIB
    basis = f"{LOG_BYTES / 1e6:g} MB a run in {len(groups)} log group(s)"
    return [Use("CloudWatch, logs", size, "GiB-month", "log_storage_gib_month", basis)]


def alarm_uses(alarms: Sequence[Resource], _: Contents) -> list[Use]:
    """Alarms are billed by the metrics they look at."""
    if any(alarm.get("Period", 60) < 60 for alarm in alarms):
        raise UnknownCostError("the price of an alarm with a period under a minute is not known")
    metrics = sum(
        sum("MetricStat" in query for query in alarm.get("Metrics", [{"MetricStat": {}}]))
        for alarm in alarms
    )
    return [_alarms("CloudWatch, alarms", metrics, f"metrics of {len(alarms)} alarms")]


def scaling_uses(policies: Sequence[Resource], _: Contents) -> list[Use]:
    if any(policy["PolicyType"] != "TargetTrackingScaling" for policy in policies):
        raise UnknownCostError("the alarms of a policy other than target tracking are not known")
    basis = "target tracking makes two"
    return [_alarms("CloudWatch, alarms of autoscaling", 2 * len(policies), basis)]


def _alarms(name: str, quantity: int, basis: str) -> Use:
    return Use(name, quantity, "alarm-month", "alarm_month", basis)


def dashboard_uses(dashboards: Sequence[Resource], _: Contents) -> list[Use]:
    name = "CloudWatch, dashboards"
    return [Use(name, len(dashboards), "dashboard", "dashboard_month", "up to 50 metrics each")]


def key_uses(keys: Sequence[Resource], _: Contents) -> list[Use]:
    basis = "$1 more after each of the first two yearly rotations"
    return [Use("KMS, customer key", len(keys), "key-month", "kms_key_month", basis)]


def budget_action_uses(actions: Sequence[Resource], _: Contents) -> list[Use]:
    budgets = len({str(action["BudgetName"]) for action in actions})
    days = budgets * HOURS_PER_MONTH / 24
    basis = "days of budgets that have an action"
    return [Use("Budgets, action", days, "budget-day", "budget_action_day", basis)]


def endpoint_uses(configurations: Sequence[Resource], _: Contents) -> list[Use]:
    uses = []
    for configuration in configurations:
        for variant in configuration["ProductionVariants"]:
            serverless = variant.get("ServerlessConfig")
            if serverless is None:
                count = variant["InitialInstanceCount"]
                hours, basis = count * HOURS_PER_MONTH, f"{count} machine(s), always on"
                name = "SageMaker, real-time endpoint"
                uses.append(Use(name, hours, "hour", variant["InstanceType"], basis))
            elif serverless.get("ProvisionedConcurrency"):
                raise UnknownCostError("the price of provisioned concurrency is not known")
            else:
                name, basis = "SageMaker, serverless endpoint", "nothing while nobody calls"
                uses.append(Use(name, 0, "GiB-second", "serverless_gib_second", basis))
    return uses


def group_uses(groups: Sequence[Resource], _: Contents) -> list[Use]:
    """Nothing runs, so there is no machine, no disk and no public address."""
    if any(int(group["MinSize"]) or int(group.get("DesiredCapacity", 0)) for group in groups):
        raise UnknownCostError("the price of an Auto Scaling group with idle machines is not known")
    basis = "no machine, so no disk and no address"
    return [Use("EC2, training machines", 0, "hour", "public_ipv4_hour", basis)]


PRICED: dict[str, Callable[[Sequence[Resource], Contents], list[Use]]] = {
    "AWS::S3::Bucket": bucket_uses,
    "AWS::Logs::LogGroup": log_uses,
    "AWS::CloudWatch::Alarm": alarm_uses,
    "AWS::CloudWatch::Dashboard": dashboard_uses,
    "AWS::ApplicationAutoScaling::ScalingPolicy": scaling_uses,
    "AWS::KMS::Key": key_uses,
    "AWS::Budgets::BudgetsAction": budget_action_uses,
    "AWS::SageMaker::EndpointConfig": endpoint_uses,
    "AWS::AutoScaling::AutoScalingGroup": group_uses,
}

# Types that never cost anything by themselves: the reason.
FREE = {
    **dict.fromkeys(
        [
            "AWS::IAM::InstanceProfile",
            "AWS::IAM::ManagedPolicy",
            "AWS::IAM::Policy",
            "AWS::IAM::Role",
        ],
        "IAM costs nothing",
    ),
    **dict.fromkeys(
        [
            "AWS::EC2::InternetGateway",
            "AWS::EC2::Route",
            "AWS::EC2::RouteTable",
            "AWS::EC2::SecurityGroup",
            "AWS::EC2::Subnet",
            "AWS::EC2::SubnetRouteTableAssociation",
            "AWS::EC2::VPC",
            "AWS::EC2::VPCGatewayAttachment",
        ],
        "a network costs nothing; NAT gateways would",
    ),
    **dict.fromkeys(
        ["AWS::SNS::Subscription", "AWS::SNS::Topic", "AWS::SNS::TopicPolicy"],
        "billed by messages; none while idle",
    ),
    **dict.fromkeys(
        ["AWS::Lambda::Function", "Custom::S3AutoDeleteObjects"],
        "billed by calls; only at `cdk destroy`",
    ),
    "AWS::ApplicationAutoScaling::ScalableTarget": "a definition only",
    "AWS::BCM::Dashboard": "AWS lists no price for it",
    "AWS::Budgets::Budget": "budgets that only warn are free (AWS Price List, BudgetsUsage)",
    "AWS::EC2::LaunchTemplate": "a definition only",
    "AWS::S3::BucketPolicy": "part of the bucket",
    "AWS::SageMaker::Endpoint": "billed by its configuration",
    "AWS::SageMaker::Model": "a definition only; its file is in the bucket",
}

# Types that are free in the form that our stacks use: a property, its free values, the reason.
FREE_IF: dict[str, tuple[str, list[str | None], str]] = {
    "AWS::EC2::VPCEndpoint": ("VpcEndpointType", ["Gateway"], "gateway endpoints are free"),
    "AWS::SSM::Parameter": ("Tier", [None, "Standard"], "standard parameters are free"),
}


def free_reason(type: str, resource: Resource) -> str:
    """Why a resource costs nothing. Raises UnknownCostError for one in none of the tables."""
    if type in FREE:
        return FREE[type]
    if type in FREE_IF:
        name, values, reason = FREE_IF[type]
        if resource.get(name) in values:
            return reason
        raise UnknownCostError(f"the price of {type} with {name} {resource.get(name)} is not known")
    raise UnknownCostError(
        f"it is not known what {type} costs while idle: add it to costs/resources.py"
    )
