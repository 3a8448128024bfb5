"""An alarm for a run that waits for a machine."""

from aws_cdk import Duration
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_cloudwatch_actions as actions
from aws_cdk import aws_sns as sns
from constructs import Construct

from infra.config import Config
from infra.dashboard import group_metric

WAIT_MINUTES = 30  # longer than the fallback takes, unless it was given more
ADVICE = {
    "spot_first": "no machine came",
    "spot": "no spot machine came; `purchase` spot_first in cdk.json falls back on demand",
    "on_demand": "no on-demand machine came",
}


class NoMachineAlarm(Construct):
    """One mail for a wait of half an hour, however often the groups try meanwhile.

    A group announces each launch that fails, and tries again every few minutes.
    """

    def __init__(self, scope: Construct, id: str, *, config: Config, alerts: sns.ITopic) -> None:
        super().__init__(scope, id)
        wanted, there = [], []
        metrics: dict[str, cloudwatch.IMetric] = {}
        for number, group in enumerate(config.group_names):
            wanted.append(f"FILL(wanted{number}, 0)")
            there.append(f"FILL(there{number}, 0)")
            metrics[f"wanted{number}"] = group_metric("GroupDesiredCapacity", group)
            metrics[f"there{number}"] = group_metric("GroupInServiceInstances", group)
        waits = f"IF({' + '.join(wanted)} > 0 AND {' + '.join(there)} == 0, 1, 0)"
        cloudwatch.Alarm(
            self,
            "Alarm",
            alarm_name=f"{config.name}-no-machine",
            alarm_description=(
                f"A run has waited {WAIT_MINUTES} minutes: {ADVICE[config.purchase]}. The group "
                "goes on trying until the run's end. See `python -m training.launch status` for "
                "what AWS says; more instance_types in cdk.json, or another region, may help; "
                "`python -m training.launch stop` ends it."
            ),
            metric=cloudwatch.MathExpression(
                expression=waits,
                using_metrics=metrics,
                period=Duration.minutes(1),
                label="a run waits",
            ),
            comparison_operator=cloudwatch.ComparisonOperator.GREATER_THAN_THRESHOLD,
            threshold=0,
            evaluation_periods=WAIT_MINUTES,
            treat_missing_data=cloudwatch.TreatMissingData.NOT_BREACHING,
        ).add_alarm_action(actions.SnsAction(alerts))
