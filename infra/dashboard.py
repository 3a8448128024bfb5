"""The CloudWatch dashboard: how far training is, how the endpoint is, what AWS charges."""

from collections.abc import Sequence

from aws_cdk import Duration
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_logs as logs
from constructs import Construct

from infra.config import Config
from infra.model_endpoint import VARIANT, endpoint_name

NOTES = """\
**Training**: empty until the first run; then a minute behind it. \
**Endpoint**: empty until it is called. \
**Charges**: this month's, of the whole account, a few times a day; \
in us-east-1 alone, and only once "Receive CloudWatch billing alerts" is on under \
[Billing preferences](https://console.aws.amazon.com/billing/home#/preferences) \
of the account that pays."""

# Lines of training.train's progress bars, as training.machine.attempt passes them on.
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
    """One page, of metrics that AWS keeps anyway and of the log: no custom metric is paid for.

    An account has three dashboards free of charge; each further one is $3 a month.
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
                        title="Training: % of photos, of epochs, accuracy on validation photos",
                        log_group_names=[log_group.log_group_name],
                        query_lines=PROGRESS,
                        view=cloudwatch.LogQueryVisualizationType.LINE,
                        width=HALF,
                    ),
                    _graph(
                        "Training machines: wanted and there",
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
                        title="Training: last lines of the log",
                        log_group_names=[log_group.log_group_name],
                        query_lines=LAST_LINES,
                        view=cloudwatch.LogQueryVisualizationType.TABLE,
                        width=FULL,
                    )
                ],
                _endpoint_widgets(config),
                [
                    _graph(
                        "Estimated charges this month: EC2, SageMaker, all",
                        [_charges("AmazonEC2"), _charges("AmazonSageMaker"), _charges(None)],
                        width=FULL,
                        start="-P30D",
                    )
                ],
            ],
        )


def _endpoint_widgets(config: Config) -> list[cloudwatch.IWidget]:
    """Calls, latency, and what the kind of endpoint is short of: a warm start, or its machine."""
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
    return cloudwatch.Metric(
        namespace=namespace,
        metric_name=name,
        dimensions_map={"EndpointName": endpoint, "VariantName": VARIANT},
        statistic=statistic,
        label=f"{name} ({statistic.lower()})",
        period=Duration.minutes(5),
    )


def _charges(service: str | None) -> cloudwatch.Metric:
    """Dollars since the month began, of one service or of all."""
    return cloudwatch.Metric(
        namespace="AWS/Billing",
        metric_name="EstimatedCharges",
        dimensions_map={"Currency": "USD", **({"ServiceName": service} if service else {})},
        label=service or "all",
        region="us-east-1",  # the only one that has it
        statistic="Maximum",
        period=Duration.hours(6),
    )
