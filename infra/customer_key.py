"""The account's own key for all that the stacks store, with kms=customer."""

from aws_cdk import Duration, RemovalPolicy, Stack
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from constructs import Construct

from infra.acknowledge import acknowledge
from infra.statements import by_alerting_services

# Required by EBS and CloudWatch Logs, according to the guides of Auto Scaling and Logs.
USE = ["kms:Decrypt", "kms:Encrypt", "kms:GenerateDataKey*", "kms:ReEncrypt*"]


class CustomerKey(Construct):
    """A key that rotates yearly; its deletion can be cancelled for 30 days.

    AWS services that use no role of ours are allowed here, each for this account alone. Roles have
    their permissions in their own policies.
    """

    def __init__(
        self, scope: Construct, id: str, *, log_group: str, removal_policy: RemovalPolicy
    ) -> None:
        super().__init__(scope, id)
        self.key = kms.Key(
            self,
            "Key",
            description="Bin counter: data, disks, logs and alerts",
            enable_key_rotation=True,
            pending_window=Duration.days(30),
            removal_policy=removal_policy,
        )
        publish = ["kms:Decrypt", "kms:GenerateDataKey*"]
        for statement in (
            *by_alerting_services(Stack.of(self), publish, "*"),
            self._may_keep_logs(log_group),
            self._may_start_machines("UseDisks", ["kms:DescribeKey", *USE], {}),
            self._may_start_machines(
                "LendDisks", ["kms:CreateGrant"], {"Bool": {"kms:GrantIsForAWSResource": "true"}}
            ),
        ):
            self.key.add_to_resource_policy(statement)
        acknowledge(
            self.key,
            "CKV_AWS_33",
            "The condition names two of AWS's roles, which fail as principals until they exist.",
        )

    def _may_keep_logs(self, log_group: str) -> iam.PolicyStatement:
        stack = Stack.of(self)
        arn = f"arn:{stack.partition}:logs:{stack.region}:{stack.account}:log-group:{log_group}"
        # The guide also lists kms:Describe*, which never meets the condition.
        return iam.PolicyStatement(
            sid="LogsMayKeep",
            principals=[iam.ServicePrincipal(f"logs.{stack.region}.amazonaws.com")],
            actions=USE,
            resources=["*"],
            conditions={"ArnLike": {"kms:EncryptionContext:aws:logs:arn": arn}},
        )

    def _may_start_machines(
        self, sid: str, actions: list[str], conditions: dict[str, object]
    ) -> iam.PolicyStatement:
        """Let the roles of Auto Scaling and EC2 Spot encrypt disks, and the first one publish.

        AWS creates these roles when a group first needs them, so they cannot be principals here.
        """
        stack = Stack.of(self)
        roles = [
            f"arn:{stack.partition}:iam::{stack.account}:role/aws-service-role/{service}/{name}"
            for service, name in (
                ("autoscaling.amazonaws.com", "AWSServiceRoleForAutoScaling"),
                ("spot.amazonaws.com", "AWSServiceRoleForEC2Spot"),
            )
        ]
        return iam.PolicyStatement(
            sid=sid,
            principals=[iam.AnyPrincipal()],
            actions=actions,
            resources=["*"],
            conditions={"ArnEquals": {"aws:PrincipalArn": roles}, **conditions},
        )
