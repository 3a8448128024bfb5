"""BudgetStack: the topic for alerts, the budgets that raise them, and what has been spent."""

from collections.abc import Mapping, Sequence

from aws_cdk import CfnOutput, Stack
from aws_cdk import aws_iam as iam
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


class BudgetStack(Stack):
    """Monthly budgets of the account, of spot machines and of SageMaker; alerts to one topic.

    Budgets lag by half a day: they warn, they stop nothing.
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
                "AWS's own key lets no budget publish; the one of kms=customer does.",
            )
        policy = sns.TopicPolicy(self, "AlertsPolicy", topics=[self.topic], enforce_ssl=True)
        # Roles publish by their own policies, Auto Scaling's among them; these two have no role.
        policy.document.add_statements(
            self._may_publish("budgets", f"arn:{self.partition}:budgets::{self.account}:*"),
            self._may_publish(
                "cloudwatch",
                f"arn:{self.partition}:cloudwatch:{self.region}:{self.account}:alarm:*",
            ),
        )
        if config.alert_email:
            self.topic.add_subscription(subscriptions.EmailSubscription(config.alert_email))

        budgets = self._budgets(config) if config.budgets == "yes" else []
        for budget in budgets:
            # Creating a budget fails while its topic refuses it.
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
        return [
            self._budget("Total", config, config.monthly_budget_usd),
            self._budget("Training", config, config.training_budget_usd, machines(config)),
            self._budget("SageMaker", config, config.sagemaker_budget_usd, {"Service": SAGEMAKER}),
        ]

    def _budget(
        self,
        id: str,
        config: Config,
        limit_usd: float,
        filters: Mapping[str, Sequence[str]] | None = None,
    ) -> MonthlyBudget:
        return MonthlyBudget(
            self,
            id,
            limit_usd=limit_usd,
            filters=filters,
            percentages=config.alert_percentages,
            topic=self.topic,
            email=config.alert_email,
        )

    def _may_publish(self, service: str, sources: str) -> iam.PolicyStatement:
        """Let `service` publish in the name of `sources`, which are this account's."""
        return iam.PolicyStatement(
            sid=f"{service.capitalize()}MayPublish",
            principals=[iam.ServicePrincipal(f"{service}.amazonaws.com")],
            actions=["sns:Publish"],
            resources=[self.topic.topic_arn],
            conditions={
                "StringEquals": {"aws:SourceAccount": self.account},
                "ArnLike": {"aws:SourceArn": sources},
            },
        )


def machines(config: Config) -> dict[str, list[str]]:
    """What Billing calls the machines that train, all of the account's: tags come a day late."""
    if config.purchase == "spot":
        return {"Service": EC2, "PurchaseType": ["Spot Instances"]}
    return {"Service": EC2}
