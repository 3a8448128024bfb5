"""The CloudWatch dashboard: progress of the training, state of the endpoint, charges."""

from collections.abc import Sequence

from aws_cdk import Duration
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_logs as logs
from constructs import Construct

from infra.config import Config
from infra.endpoint_alarms import endpoint_metric
from infra.model_endpoint import endpoint_name

NOTES = """\
**Training**: empty until the first run, then about a minute behind. \
**Endpoint**: empty until it is called. \
**Charges**: those of the whole account this month, updated a few times a day; \
only in us-east-1, and only if "Receive CloudWatch billing alerts" is on in the \
[Billing preferences](https://console.aws.amazon.com/billing/home#/preferences) \
of the account that pays."""

# Lines of training.train's progress bars, as training.machine logs them.
PROGRESS = [
    "filter @message like /train: (features|head)/",
    r"parse @message /features train: +(?<train>\d+)%/",
    r"parse @message /features test: +(?<test>\d+)%/",
    r"parse @message /head: +(?<head>\d+)%/",
    r"parse @message /accuracy=(?<correct>[\d.]+)%/",
    "stats max(train) as train_photos, max(test) as test_photos, max(head) as epochs, "
    "max(correct) as accuracy by bin(1m)",
]
LAST_LINES = [
    "fields @timestamp, @logStream, @message",
    r"filter @message not like /\d%\|/",
    "sort @timestamp desc",
    "limit 20",
]
FULL, HALF, THIRD = 24, 12, 8


class Dashboard(Construct):
    """One page of the log and of metrics that AWS records anyway; custom metrics would cost.

    Three dashboards in an account are free; each further one costs $3 a month.
    """

    def __init__(
        self, scope: Construct, id: str, *, config: Config, log_group: logs.ILogGroup
    ) -> None:
        super().__init__(scope, id)
        cloudwatch.Dashboard(
            self,
            "Dashboard",
            dashboard_name=config.name,
            default_interval=Duration.hours(12),
            widgets=[
                [cloudwatch.TextWidget(markdown=NOTES, width=FULL, height=2)],
                [
                    cloudwatch.LogQueryWidget(
                        title="Training: % of photos, % of epochs, accuracy on validation photos",
                        log_group_names=[log_group.log_group_name],
                        query_lines=PROGRESS,
                        view=cloudwatch.LogQueryVisualizationType.LINE,
                        width=HALF,
                    ),
                    _graph(
                        "Training machines: desired and in service",
                        [
                            group_metric(name, group)
                            for group in config.group_names
                            for name in ("GroupDesiredCapacity", "GroupInServiceInstances")
                        ],
                        width=HALF,
                    ),
                ],
                [
                    cloudwatch.LogQueryWidget(
                        title="Training: newest lines of the log",
                        log_group_names=[log_group.log_group_name],
                        query_lines=LAST_LINES,
                        view=cloudwatch.LogQueryVisualizationType.TABLE,
                        width=FULL,
                    )
                ],
                _endpoint_widgets(config),
                [
                    _graph(
                        "Estimated charges this month: EC2, SageMaker, total",
                        [_charges("AmazonEC2"), _charges("AmazonSageMaker"), _charges(None)],
                        width=FULL,
                        start="-P30D",
                    )
                ],
            ],
        )


def _endpoint_widgets(config: Config) -> list[cloudwatch.IWidget]:
    """Calls, latency, and the bottleneck of the kind of endpoint: cold starts, or its machine."""
    endpoint = endpoint_name(config)
    calls = [
        _endpoint_metric(name, endpoint, "Sum")
        for name in ("Invocations", "Invocation4XXErrors", "Invocation5XXErrors")
    ]
    latency = [
        _endpoint_metric(name, endpoint, statistic)
        for name in ("ModelLatency", "OverheadLatency")
        for statistic in ("Average", "Maximum")
    ]
    if config.endpoint == "realtime":
        title = "machine, %"
        load = [
            _endpoint_metric(name, endpoint, "Maximum", "/aws/sagemaker/Endpoints")
            for name in ("CPUUtilization", "MemoryUtilization")
        ]
    else:
        title = "cold starts, µs"
        load = [_endpoint_metric("ModelSetupTime", endpoint, "Maximum")]
    return [
        _graph(f"{endpoint}: calls and errors", calls, width=THIRD),
        _graph(f"{endpoint}: latency, µs", latency, width=THIRD),
        _graph(f"{endpoint}: {title}", load, width=THIRD),
    ]


def _graph(
    title: str, metrics: Sequence[cloudwatch.IMetric], *, width: int, start: str | None = None
) -> cloudwatch.GraphWidget:
    return cloudwatch.GraphWidget(
        title=title,
        left=metrics,
        left_y_axis=cloudwatch.YAxisProps(min=0),
        width=width,
        start=start,
    )


def group_metric(name: str, group: str) -> cloudwatch.Metric:
    return cloudwatch.Metric(
        namespace="AWS/AutoScaling",
        metric_name=name,
        dimensions_map={"AutoScalingGroupName": group},
        statistic="Maximum",
        period=Duration.minutes(1),
    )


def _endpoint_metric(
    name: str, endpoint: str, statistic: str, namespace: str = "AWS/SageMaker"
) -> cloudwatch.Metric:
    label = f"{name} ({statistic.lower()})"
    return endpoint_metric(name, endpoint, statistic, Duration.minutes(5), namespace, label)


def _charges(service: str | None) -> cloudwatch.Metric:
    """Dollars since the beginning of the month, for one service or in total."""
    return cloudwatch.Metric(
        namespace="AWS/Billing",
        metric_name="EstimatedCharges",
        dimensions_map={"Currency": "USD", **({"ServiceName": service} if service else {})},
        label=service or "total",
        region="us-east-1",  # the only region with this metric
        statistic="Maximum",
        period=Duration.hours(6),
    )
