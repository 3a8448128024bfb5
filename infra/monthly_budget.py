"""A monthly budget with alerts on actual and forecast spending."""

from collections.abc import Mapping, Sequence

from aws_cdk import aws_budgets as budgets
from aws_cdk import aws_sns as sns
from constructs import Construct


class MonthlyBudget(Construct):
    """A monthly cost budget of the account, or of the part of it that matches `filters`.

    `filters` maps a dimension, such as Service, to its values; all dimensions have to match. AWS
    generates the `name`: changing the alerts replaces the budget, and a fixed name would then
    conflict with the old one.
    """

    def __init__(
        self,
        scope: Construct,
        id: str,
        *,
        limit_usd: float,
        filters: Mapping[str, Sequence[str]] | None = None,
        percentages: Sequence[int] = (),
        topic: sns.ITopic | None = None,
        email: str | None = None,
    ) -> None:
        super().__init__(scope, id)
        budget = budgets.CfnBudget(
            self,
            "Budget",
            budget=budgets.CfnBudget.BudgetDataProperty(
                budget_type="COST",
                time_unit="MONTHLY",
                budget_limit=budgets.CfnBudget.SpendProperty(amount=limit_usd, unit="USD"),
                cost_filters=filters,
                # Credits would hide the spending until they run out.
                cost_types=budgets.CfnBudget.CostTypesProperty(
                    include_credit=False, include_refund=False
                ),
            ),
            notifications_with_subscribers=_alerts(percentages, topic, email) or None,
        )
        self.name = budget.ref


def _alerts(
    percentages: Sequence[int], topic: sns.ITopic | None, email: str | None
) -> list[budgets.CfnBudget.NotificationWithSubscribersProperty]:
    subscribers = []
    if topic:
        subscribers.append(
            budgets.CfnBudget.SubscriberProperty(subscription_type="SNS", address=topic.topic_arn)
        )
    if email:
        # As well as by the topic, whose e-mail subscription has to be confirmed first.
        subscribers.append(
            budgets.CfnBudget.SubscriberProperty(subscription_type="EMAIL", address=email)
        )
    return [
        budgets.CfnBudget.NotificationWithSubscribersProperty(
            notification=budgets.CfnBudget.NotificationProperty(
                notification_type=kind,
                comparison_operator="GREATER_THAN",
                threshold=percentage,
                threshold_type="PERCENTAGE",
            ),
            subscribers=subscribers,
        )
        for kind in ("ACTUAL", "FORECASTED")
        for percentage in percentages
    ]
