"""BudgetStack: the topic for alerts, and the budgets that raise them."""

from aws_cdk import Stack
from aws_cdk import aws_iam as iam
from aws_cdk import aws_sns as sns
from aws_cdk import aws_sns_subscriptions as subscriptions
from constructs import Construct

from infra.config import Config
from infra.monthly_budget import MonthlyBudget


class BudgetStack(Stack):
    """Monthly budgets of the account, of EC2 and of SageMaker, with alerts to one topic.

    Budgets lag by half a day: they warn, they stop nothing.
    """

    def __init__(self, scope: Construct, id: str, *, config: Config) -> None:
        super().__init__(scope, id, description="Bin counter: budgets and alerts")
        self.topic = sns.Topic(self, "Alerts")
        policy = sns.TopicPolicy(self, "AlertsPolicy", topics=[self.topic], enforce_ssl=True)
        policy.document.add_statements(self._budgets_may_publish())
        if config.alert_email:
            self.topic.add_subscription(subscriptions.EmailSubscription(config.alert_email))

        limits = {
            "Total": (config.monthly_budget_usd, None),
            "Training": (config.training_budget_usd, "Amazon Elastic Compute Cloud - Compute"),
            "SageMaker": (config.sagemaker_budget_usd, "Amazon SageMaker"),
        }
        for name, (limit_usd, service) in limits.items():
            budget = MonthlyBudget(
                self,
                name,
                limit_usd=limit_usd,
                percentages=config.alert_percentages,
                topic=self.topic,
                email=config.alert_email,
                service=service,
            )
            # Creating a budget fails while its topic refuses it.
            budget.node.add_dependency(policy)

    def _budgets_may_publish(self) -> iam.PolicyStatement:
        budgets_of_account = f"arn:{self.partition}:budgets::{self.account}:*"
        return iam.PolicyStatement(
            sid="BudgetsMayPublish",
            principals=[iam.ServicePrincipal("budgets.amazonaws.com")],
            actions=["sns:Publish"],
            resources=[self.topic.topic_arn],
            conditions={
                "StringEquals": {"aws:SourceAccount": self.account},
                "ArnLike": {"aws:SourceArn": budgets_of_account},
            },
        )
