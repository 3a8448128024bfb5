"""TrainStack: everything that a training run on EC2 needs, and what each part may do."""

from collections.abc import Mapping
from pathlib import Path

from aws_cdk import ArnFormat, CfnOutput, RemovalPolicy, Stack
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_logs as logs
from aws_cdk import aws_s3 as s3
from aws_cdk import aws_sns as sns
from aws_cdk import aws_ssm as ssm
from constructs import Construct

from common.names import log_group_name, model_parameter, stack_name
from common.run_record import RESULTS
from infra.acknowledge import AWS_KEY, acknowledge, acknowledge_objects
from infra.budget_action import BudgetAction
from infra.config import Config
from infra.dashboard import Dashboard
from infra.job_role import PREPARATION, TRAINING, JobRole
from infra.launcher_role import REQUEST, LauncherRole
from infra.network import TrainingNetwork
from infra.no_machine_alarm import NoMachineAlarm
from infra.spot_trainer import SpotTrainer
from infra.statements import allow, book, cancel_bookings, list_prefixes, on_objects, use_key

NO_MODEL = "none: run python -m training.launch first"  # SageMaker quotes it when it refuses
# Keys in the bucket, no more than are used: tests/infra/test_permissions.py tells of one too many.
MACHINE_LISTS = ["checkpoints/*", "control/*", "datasets/*", "runtime/*"]
MACHINE_READS = [
    "checkpoints/*",
    "control/current.json",
    "control/lease.json",
    "datasets/*",
    *(f"runs/*/{name}" for name in ("code.tar.gz", "request.json", "status.json")),
    "runtime/*",
    "weights/*",
]
MACHINE_WRITES = [
    "checkpoints/*",
    "control/lease.json",
    *(f"runs/*/{name}" for name in ("logs/*", "status.json", *RESULTS)),
]
USER_DATA = Path(__file__).with_name("user_data.sh")


class TrainStack(Stack):
    """Network, machine group, launcher's role, log group, and the parameter of the newest model."""

    def __init__(
        self,
        scope: Construct,
        id: str,
        *,
        config: Config,
        bucket: s3.IBucket,
        alerts: sns.ITopic,
        key: kms.IKey | None,
    ) -> None:
        super().__init__(
            scope,
            id,
            stack_name=stack_name(config.name, id),
            description="Bin counter: machines that train",
        )
        self._groups = config.group_names
        # CloudFormation writes NO_MODEL again if a property of it ever changes.
        self.model = ssm.StringParameter(
            self,
            "Model",
            parameter_name=model_parameter(config.name),
            string_value=NO_MODEL,
            description="Newest model: s3://bucket/runs/<id>/model.tar.gz",
        )
        self.log_group = logs.LogGroup(
            self,
            "Logs",
            log_group_name=log_group_name(config.name),
            retention=logs.RetentionDays.ONE_MONTH,
            encryption_key=key,
            removal_policy=RemovalPolicy.DESTROY,
        )
        network = TrainingNetwork(self, "Network")
        trainer = SpotTrainer(
            self,
            "Trainer",
            config=config,
            network=network,
            key=key,
            user_data=boot_script(
                {
                    "BUCKET": bucket.bucket_name,
                    "GROUP_NAMES": " ".join(self._groups),
                    "MODEL_PARAMETER": model_parameter(config.name),
                    "TOPIC_ARN": alerts.topic_arn,
                    "LOG_GROUP": log_group_name(config.name),
                    "AWS_DEFAULT_REGION": self.region,
                    "VOLUME_GIB": str(config.volume_gib),
                }
            ),
        )
        self._grant_machine(trainer.role, bucket, alerts)
        jobs = JobRole(self, "TrainingJob", access=TRAINING, bucket=bucket, key=key).role
        preparation = JobRole(
            self, "PreparationJob", access=PREPARATION, bucket=bucket, key=key
        ).role
        launcher = LauncherRole(
            self,
            "Launcher",
            bucket=bucket,
            key=key,
            group_arns=self._group_arns(),
            group_wildcards=self._group_wildcards(),
            training_job_role=jobs,
            model=self.model,
            alerts=alerts,
            name=config.name,
        ).role
        if key:
            trainer.role.add_to_policy(use_key(key, ["s3", "sns"]))
        else:
            acknowledge(self.log_group, ["CloudWatchLogGroupEncrypted", "CKV_AWS_158"], AWS_KEY)
        acknowledge(
            trainer.role, "IAMNoInlinePolicy", "The policy is only this role's, goes with it."
        )
        acknowledge(
            trainer.role.node.find_child("DefaultPolicy"),
            "CKV_AWS_111",
            "What may be on any resource is Session Manager's, whose actions know none.",
        )

        if config.over_budget == "deny":
            BudgetAction(
                self,
                "OverBudget",
                config=config,
                launcher=launcher,
                group_arns=self._group_arns(),
                requests=[bucket.arn_for_objects(f"runs/*/{name}") for name in REQUEST],
                alerts=alerts,
            )
        Dashboard(self, "Dashboard", config=config, log_group=self.log_group)
        NoMachineAlarm(self, "NoMachine", config=config, alerts=alerts)

        CfnOutput(
            self,
            "GroupNames",
            value=",".join(self._groups),
            description="The one that a launch starts, and that of the fallback",
        )
        CfnOutput(self, "LauncherRoleArn", value=launcher.role_arn)
        CfnOutput(self, "TrainingJobRoleArn", value=jobs.role_arn)
        CfnOutput(self, "PreparationJobRoleArn", value=preparation.role_arn)
        CfnOutput(self, "ModelParameterName", value=self.model.parameter_name)

    def _grant_machine(self, role: iam.Role, bucket: s3.IBucket, alerts: sns.ITopic) -> None:
        for statement in (
            list_prefixes(bucket, MACHINE_LISTS),
            on_objects("Read", "s3:GetObject", bucket, MACHINE_READS),
            on_objects("Write", "s3:PutObject", bucket, MACHINE_WRITES),
            on_objects("BreakOff", "s3:AbortMultipartUpload", bucket, ["checkpoints/*"]),
            on_objects("Release", "s3:DeleteObject", bucket, ["control/current.json"]),
            allow("EndTheRun", ["autoscaling:SetDesiredCapacity"], self._group_arns()),
            allow("Publish", ["ssm:PutParameter"], [self.model.parameter_arn]),
            allow("Notify", ["sns:Publish"], [alerts.topic_arn]),
            allow(
                "Log",
                ["logs:CreateLogStream", "logs:PutLogEvents"],
                [self.log_group.log_group_arn],
            ),
            # Session Manager. AWS's managed policy for it reads every parameter of the account.
            allow(
                "OpenSessions",
                [
                    "ssm:UpdateInstanceInformation",
                    "ssmmessages:CreateControlChannel",
                    "ssmmessages:CreateDataChannel",
                    "ssmmessages:OpenControlChannel",
                    "ssmmessages:OpenDataChannel",
                ],
                ["*"],
            ),
        ):
            role.add_to_policy(statement)
        if fallback := self._group_arns()[1:]:
            role.add_to_policy(book("PutOffTheFallback", fallback))
            role.add_to_policy(cancel_bookings("CancelTheFallback", fallback))
        acknowledge_objects(
            role, bucket, MACHINE_READS + MACHINE_WRITES, "Run ids and data sets are made later."
        )
        acknowledge(
            role, self._group_wildcards(), "AWS makes up the middle of the ARN; the name is fixed."
        )
        acknowledge(role, "IAM5[Resource::*]", "Session Manager's actions know no resource.")

    def _group_wildcards(self) -> list[str]:
        """What cdk-nag says of the groups' ARNs."""
        return [
            "IAM5[Resource::arn:<AWS::Partition>:autoscaling:<AWS::Region>:<AWS::AccountId>"
            f":autoScalingGroup:*:autoScalingGroupName/{name}]"
            for name in self._groups
        ]

    def _group_arns(self) -> list[str]:
        return [
            self.format_arn(
                service="autoscaling",
                resource="autoScalingGroup",
                resource_name=f"*:autoScalingGroupName/{name}",
                arn_format=ArnFormat.COLON_RESOURCE_NAME,
            )
            for name in self._groups
        ]


def boot_script(variables: Mapping[str, str]) -> str:
    """The user data of a machine: `variables`, exported, then infra/user_data.sh."""
    exports = "".join(f"export {name}='{value}'\n" for name, value in variables.items())
    return f"#!/bin/bash\n{exports}{USER_DATA.read_text()}"
