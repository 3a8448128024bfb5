"""Alarms of a real-time endpoint, sent to the alert topic."""

from aws_cdk import Duration, Stack
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_cloudwatch_actions as actions
from aws_cdk import aws_sns as sns
from constructs import Construct

VARIANT = "AllTraffic"
# ResNet50 answers in about 0.05 s on an ml.m5.large, and decoding the largest accepted photo takes
# half a second: if p99 is above this for three minutes, the machine is overloaded or the model bad.
SLOW_SECONDS = 1.0
ROLLBACK = ("errors", "latency")


def rollback_alarms(endpoint: str) -> list[str]:
    """Names of the alarms that roll back a new model."""
    return [f"{endpoint}-{kind}" for kind in ROLLBACK]


def endpoint_metric(
    name: str,
    endpoint: str,
    statistic: str,
    period: Duration,
    namespace: str = "AWS/SageMaker",
    label: str | None = None,
) -> cloudwatch.Metric:
    return cloudwatch.Metric(
        namespace=namespace,
        metric_name=name,
        dimensions_map={"EndpointName": endpoint, "VariantName": VARIANT},
        statistic=statistic,
        label=label,
        period=period,
    )


class EndpointAlarms(Construct):
    """Errors, high latency, and a day without a call.

    The first two also roll back a new model. They treat missing data as fine; otherwise, an
    endpoint without calls would always roll back.
    """

    def __init__(self, scope: Construct, id: str, *, endpoint: str, alerts: sns.ITopic) -> None:
        super().__init__(scope, id)
        self._endpoint, self._topic = endpoint, actions.SnsAction(alerts)
        minute, hour = Duration.minutes(1), Duration.hours(1)
        self._alarm(
            "errors",
            "The endpoint answered 5xx: a bug, or too little memory. A bad photo is answered 4xx.",
            endpoint_metric("Invocation5XXErrors", endpoint, "Sum", minute),
            above=0,
            periods=1,
        )
        self._alarm(
            "latency",
            f"1 % of the answers took more than {SLOW_SECONDS:g} s for three minutes.",
            endpoint_metric("ModelLatency", endpoint, "p99", minute),
            above=SLOW_SECONDS * 1e6,  # the metric is in microseconds
            periods=3,
        )
        machines = ("CPUUtilization", endpoint, "SampleCount", hour, "/aws/sagemaker/Endpoints")
        self._alarm(
            "idle",
            "No call for a day, and the endpoint costs by the hour: "
            f"delete it with `cdk destroy {Stack.of(self).stack_name}`, or make it serverless.",
            # Without calls, there is no metric of calls. In a sum, CloudWatch counts a missing
            # value as 0 if the other term has data: so each hour in which a machine is up has 0
            # calls. Treating missing data as breaching would fire right after a deployment.
            cloudwatch.MathExpression(
                expression="calls + 0 * machines",
                using_metrics={
                    "calls": endpoint_metric("Invocations", endpoint, "Sum", hour),
                    "machines": endpoint_metric(*machines),
                },
                period=hour,
                label="calls an hour",
            ),
            below=1,
            periods=24,
        )

    def _alarm(
        self,
        kind: str,
        description: str,
        metric: cloudwatch.IMetric,
        *,
        above: float = 0,
        below: float | None = None,
        periods: int,
    ) -> None:
        operator = cloudwatch.ComparisonOperator
        cloudwatch.Alarm(
            self,
            kind.capitalize(),
            alarm_name=f"{self._endpoint}-{kind}",
            alarm_description=description,
            metric=metric,
            comparison_operator=(
                operator.GREATER_THAN_THRESHOLD if below is None else operator.LESS_THAN_THRESHOLD
            ),
            threshold=above if below is None else below,
            evaluation_periods=periods,
            treat_missing_data=cloudwatch.TreatMissingData.NOT_BREACHING,
        ).add_alarm_action(self._topic)
