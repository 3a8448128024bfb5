"""An alarm for a run that waits for a machine."""

from aws_cdk import Duration
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_cloudwatch_actions as actions
from aws_cdk import aws_sns as sns
from constructs import Construct

from infra.config import Config
from infra.dashboard import group_metric

WAIT_MINUTES = 30  # longer than the default of `launch --fallback-minutes`
ADVICE = {
    "spot_first": "no machine has started",
    "spot": "no spot machine has started; with `purchase` spot_first, an on-demand one would",
    "on_demand": "no on-demand machine has started",
}


class NoMachineAlarm(Construct):
    """One e-mail when a run has waited for half an hour.

    A group's own notifications would send one for each failed launch, every few minutes.
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
                "keeps trying until the run's deadline. `python -m training.launch status` shows "
                "AWS's reasons; more instance_types in cdk.json, or another region, may help; "
                "`python -m training.launch stop` ends the run."
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
