"""With over_budget=deny, new runs are blocked once the monthly budget is spent."""

from collections.abc import Sequence

from aws_cdk import CfnOutput, Stack
from aws_cdk import aws_budgets as budgets
from aws_cdk import aws_iam as iam
from aws_cdk import aws_s3 as s3
from aws_cdk import aws_sns as sns
from constructs import Construct

from infra.acknowledge import INLINE, acknowledge
from infra.config import Config
from infra.launcher_role import REQUEST
from infra.monthly_budget import MonthlyBudget
from infra.statements import allow, group_arns


class BudgetAction(Construct):
    """Attaches a deny to the launcher's role once the account's monthly budget is spent.

    IAM cannot distinguish a capacity of 1 from 0, and setting 0 must remain possible. So the deny
    is on what else a start needs: booking the groups' return to 0, without which the launcher
    never raises the capacity, and writing a run's request, without which a machine does no work. A
    running machine continues to its end. Billing data, and so the deny, lag 8 to 12 hours.

    The budget is a separate one: a budget with alerts is replaced when they change, and AWS then
    deletes its actions.
    """

    def __init__(
        self,
        scope: Construct,
        id: str,
        *,
        config: Config,
        launcher: iam.Role,
        bucket: s3.IBucket,
        alerts: sns.ITopic,
    ) -> None:
        super().__init__(scope, id)
        groups = group_arns(Stack.of(self), config.group_names)
        requests = [bucket.arn_for_objects(f"runs/*/{name}") for name in REQUEST]
        budget = MonthlyBudget(self, "Total", limit_usd=config.monthly_budget_usd)
        deny = iam.ManagedPolicy(
            self,
            "Deny",
            description="Bin counter: over budget, no new runs",
            statements=[
                _deny("NoBooking", ["autoscaling:PutScheduledUpdateGroupAction"], groups),
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
            description="Removes the deny; with RESET_BUDGET_ACTION instead, it is armed again",
        ).override_logical_id("LiftDeny")

    def _executor(self, launcher: iam.Role, deny: iam.ManagedPolicy) -> iam.Role:
        """The role that Budgets assumes: it may attach this policy to this role, and detach it."""
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
            # Inline, so that it exists when Budgets tests the role for a new action.
            inline_policies={
                "Attach": iam.PolicyDocument(
                    statements=[
                        allow(
                            "AttachTheDeny",
                            ["iam:AttachRolePolicy", "iam:DetachRolePolicy"],
                            [launcher.role_arn],
                            {"ArnEquals": {"iam:PolicyARN": deny.managed_policy_arn}},
                        )
                    ]
                )
            },
        )
        acknowledge(role, "IAMNoInlinePolicy", INLINE)
        return role


def _deny(sid: str, actions: Sequence[str], resources: Sequence[str]) -> iam.PolicyStatement:
    return iam.PolicyStatement(
        sid=sid, effect=iam.Effect.DENY, actions=actions, resources=resources
    )
