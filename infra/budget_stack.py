"""BudgetStack: the alert topic, the budgets that alert, and a dashboard of what was spent."""

from collections.abc import Mapping, Sequence

from aws_cdk import CfnOutput, Stack
from aws_cdk import aws_kms as kms
from aws_cdk import aws_sns as sns
from aws_cdk import aws_sns_subscriptions as subscriptions
from constructs import Construct

from common.names import stack_name
from common.outputs import NO_BUDGETS
from infra.acknowledge import acknowledge
from infra.config import Config
from infra.cost_dashboard import EC2, SAGEMAKER, CostDashboard
from infra.monthly_budget import MonthlyBudget
from infra.statements import by_alerting_services


class BudgetStack(Stack):
    """Monthly budgets of the account, of spot machines and of SageMaker; alerts to one topic.

    Budgets lag by half a day; they warn but stop nothing.
    """

    def __init__(self, scope: Construct, id: str, *, config: Config, key: kms.IKey | None) -> None:
        super().__init__(
            scope,
            id,
            stack_name=stack_name(config.name, id),
            description="Bin counter: budgets and alerts",
        )
        self.topic = sns.Topic(self, "Alerts", master_key=key)
        if not key:
            acknowledge(
                self.topic,
                ["SNSEncryptedKMS", "CKV_AWS_26"],
                "Budgets cannot publish with AWS's own key; with that of kms=customer, they can.",
            )
        policy = sns.TopicPolicy(self, "AlertsPolicy", topics=[self.topic], enforce_ssl=True)
        # All others, including Auto Scaling, have a role whose own policy lets it publish.
        policy.document.add_statements(
            *by_alerting_services(self, ["sns:Publish"], self.topic.topic_arn)
        )
        if config.alert_email:
            self.topic.add_subscription(subscriptions.EmailSubscription(config.alert_email))

        budgets = self._budgets(config) if config.budgets == "yes" else []
        for budget in budgets:
            # Creating a budget fails if it may not publish to its topic.
            budget.node.add_dependency(policy)
        if config.cost_dashboard == "yes":
            CostDashboard(self, "CostDashboard", name=config.name)

        CfnOutput(self, "AlertsTopicArn", value=self.topic.topic_arn)
        CfnOutput(
            self,
            "BudgetNames",
            value=",".join(budget.name for budget in budgets) or NO_BUDGETS,
            description="Total, training, SageMaker",
        )

    def _budgets(self, config: Config) -> list[MonthlyBudget]:
        limits: dict[str, tuple[float, Mapping[str, Sequence[str]] | None]] = {
            "Total": (config.monthly_budget_usd, None),
            "Training": (config.training_budget_usd, machines(config)),
            "SageMaker": (config.sagemaker_budget_usd, {"Service": SAGEMAKER}),
        }
        return [
            MonthlyBudget(
                self,
                id,
                limit_usd=limit,
                filters=filters,
                percentages=config.alert_percentages,
                topic=self.topic,
                email=config.alert_email,
            )
            for id, (limit, filters) in limits.items()
        ]


def machines(config: Config) -> dict[str, list[str]]:
    """Cost filters for training machines, those of the whole account, as tags lag by a day."""
    if config.purchase == "spot":
        return {"Service": EC2, "PurchaseType": ["Spot Instances"]}
    return {"Service": EC2}
