"""What happens above the budget with over_budget=deny: the launcher starts nothing any more."""

from collections.abc import Sequence

from aws_cdk import CfnOutput, Stack
from aws_cdk import aws_budgets as budgets
from aws_cdk import aws_iam as iam
from aws_cdk import aws_sns as sns
from constructs import Construct

from infra.acknowledge import acknowledge
from infra.config import Config
from infra.monthly_budget import MonthlyBudget


class BudgetAction(Construct):
    """Attaches a deny to the launcher's role once the account's monthly budget is spent.

    IAM cannot tell a capacity of 1 from 0, and going to 0 must stay possible. So the deny is on
    what a start needs besides: booking the groups' return to 0, without which the launcher never
    raises it, and writing `requests`, without which a machine does no work. A run under way goes
    on to its end. Billing data lag 8 to 12 hours, and so does this.

    The budget is one of its own: a budget with alerts is replaced when they change, and AWS
    deletes a budget's actions with it.
    """

    def __init__(
        self,
        scope: Construct,
        id: str,
        *,
        config: Config,
        launcher: iam.Role,
        group_arns: Sequence[str],
        requests: Sequence[str],
        alerts: sns.ITopic,
    ) -> None:
        super().__init__(scope, id)
        budget = MonthlyBudget(self, "Total", limit_usd=config.monthly_budget_usd)
        deny = iam.ManagedPolicy(
            self,
            "Deny",
            description="Bin counter: over budget, start nothing",
            statements=[
                _deny("NoBooking", ["autoscaling:PutScheduledUpdateGroupAction"], group_arns),
                _deny("NoRequest", ["s3:PutObject"], requests),
                _deny("NothingOnSageMaker", ["sagemaker:Create*"], ["*"]),
            ],
        )
        action = budgets.CfnBudgetsAction(
            self,
            "Action",
            budget_name=budget.name,
            notification_type="ACTUAL",
            action_threshold=budgets.CfnBudgetsAction.ActionThresholdProperty(
                type="PERCENTAGE", value=100
            ),
            action_type="APPLY_IAM_POLICY",
            approval_model="AUTOMATIC",
            definition=budgets.CfnBudgetsAction.DefinitionProperty(
                iam_action_definition=budgets.CfnBudgetsAction.IamActionDefinitionProperty(
                    policy_arn=deny.managed_policy_arn, roles=[launcher.role_name]
                )
            ),
            execution_role_arn=self._executor(launcher, deny).role_arn,
            subscribers=[
                budgets.CfnBudgetsAction.SubscriberProperty(type="SNS", address=alerts.topic_arn)
            ],
        )
        CfnOutput(
            self,
            "Lift",
            value=(
                f"aws budgets execute-budget-action --account-id {Stack.of(self).account} "
                f"--budget-name {budget.name} --action-id {action.attr_action_id} "
                "--execution-type REVERSE_BUDGET_ACTION"
            ),
            description="Takes the deny off; the same with RESET_BUDGET_ACTION arms it again",
        ).override_logical_id("LiftDeny")

    def _executor(self, launcher: iam.Role, deny: iam.ManagedPolicy) -> iam.Role:
        """What Budgets acts as: may attach this policy to this role, and take it off."""
        stack = Stack.of(self)
        role = iam.Role(
            self,
            "Executor",
            description="Denies the launcher new runs, over budget",
            assumed_by=iam.ServicePrincipal(
                "budgets.amazonaws.com",
                conditions={
                    "StringEquals": {"aws:SourceAccount": stack.account},
                    "ArnLike": {
                        "aws:SourceArn": f"arn:{stack.partition}:budgets::{stack.account}:budget/*"
                    },
                },
            ),
            # Inline, so that it is there when Budgets tries the role on a new action.
            inline_policies={
                "Attach": iam.PolicyDocument(
                    statements=[
                        iam.PolicyStatement(
                            sid="AttachTheDeny",
                            actions=["iam:AttachRolePolicy", "iam:DetachRolePolicy"],
                            resources=[launcher.role_arn],
                            conditions={"ArnEquals": {"iam:PolicyARN": deny.managed_policy_arn}},
                        )
                    ]
                )
            },
        )
        acknowledge(role, "IAMNoInlinePolicy", "The policy is this role's alone and goes with it.")
        return role


def _deny(sid: str, actions: Sequence[str], resources: Sequence[str]) -> iam.PolicyStatement:
    return iam.PolicyStatement(
        sid=sid, effect=iam.Effect.DENY, actions=actions, resources=resources
    )
