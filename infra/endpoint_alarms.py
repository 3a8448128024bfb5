"""Alarms of a real-time endpoint, told to the topic of alerts."""

from aws_cdk import Duration, Stack
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_cloudwatch_actions as actions
from aws_cdk import aws_sns as sns
from constructs import Construct

# ResNet50 answers in about 0.05 s on an ml.m5.large, and decoding the largest photo that is read
# takes half a second: slower than this at p99, three minutes in a row, is overload or a bad model.
SLOW_SECONDS = 1.0
ROLLBACK = ("errors", "latency")


def rollback_alarms(endpoint: str) -> list[str]:
    """Names of the alarms that take a new model back."""
    return [f"{endpoint}-{kind}" for kind in ROLLBACK]


class EndpointAlarms(Construct):
    """Errors, slow answers, and a day without a call.

    The first two also roll a new model back. For them no data is fine: a quiet endpoint would
    always roll back. `endpoint` and `variant` are the names that CloudWatch knows.
    """

    def __init__(
        self, scope: Construct, id: str, *, endpoint: str, variant: str, alerts: sns.ITopic
    ) -> None:
        super().__init__(scope, id)
        self._endpoint = endpoint
        self._dimensions = {"EndpointName": endpoint, "VariantName": variant}
        self._topic = actions.SnsAction(alerts)
        minute = Duration.minutes(1)
        self._alarm(
            "errors",
            "The endpoint answered with 5xx. A bad photo is a 4xx: this is a bug, or no memory.",
            self._metric("Invocation5XXErrors", "Sum", minute),
            above=0,
            periods=1,
        )
        self._alarm(
            "latency",
            f"1 % of the answers took more than {SLOW_SECONDS:g} s, for three minutes.",
            self._metric("ModelLatency", "p99", minute),
            above=SLOW_SECONDS * 1e6,  # the metric is in microseconds
            periods=3,
        )
        self._idle_alarm()

    def _metric(self, name: str, statistic: str, period: Duration) -> cloudwatch.Metric:
        return cloudwatch.Metric(
            namespace="AWS/SageMaker",
            metric_name=name,
            dimensions_map=self._dimensions,
            statistic=statistic,
            period=period,
        )

    def _alarm(
        self, kind: str, description: str, metric: cloudwatch.Metric, *, above: float, periods: int
    ) -> None:
        cloudwatch.Alarm(
            self,
            kind.capitalize(),
            alarm_name=f"{self._endpoint}-{kind}",
            alarm_description=description,
            metric=metric,
            comparison_operator=cloudwatch.ComparisonOperator.GREATER_THAN_THRESHOLD,
            threshold=above,
            evaluation_periods=periods,
            treat_missing_data=cloudwatch.TreatMissingData.NOT_BREACHING,
        ).add_alarm_action(self._topic)

    def _idle_alarm(self) -> None:
        """24 hours in a row in which machines were up and nobody called."""
        hour = Duration.hours(1)
        machines = cloudwatch.Metric(
            namespace="/aws/sagemaker/Endpoints",
            metric_name="CPUUtilization",
            dimensions_map=self._dimensions,
            statistic="SampleCount",
            period=hour,
        )
        cloudwatch.Alarm(
            self,
            "Idle",
            alarm_name=f"{self._endpoint}-idle",
            alarm_description="No call for a day, and the endpoint costs by the hour: "
            f"delete it with `cdk destroy {Stack.of(self).stack_name}`, or make it serverless.",
            # Without calls there is no metric of calls. In a sum, CloudWatch takes what is missing
            # as 0 where the other term has data: hours of zero calls, from when machines are up. To
            # treat missing data as breaching would ring at once for an endpoint just deployed.
            metric=cloudwatch.MathExpression(
                expression="calls + 0 * machines",
                using_metrics={
                    "calls": self._metric("Invocations", "Sum", hour),
                    "machines": machines,
                },
                period=hour,
                label="calls an hour",
            ),
            comparison_operator=cloudwatch.ComparisonOperator.LESS_THAN_THRESHOLD,
            threshold=1,
            evaluation_periods=24,
            treat_missing_data=cloudwatch.TreatMissingData.NOT_BREACHING,
        ).add_alarm_action(self._topic)
