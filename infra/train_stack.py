"""TrainStack: everything that a training run needs, and the permissions of each part."""

from collections.abc import Mapping
from pathlib import Path

from aws_cdk import CfnOutput, RemovalPolicy, Stack
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_logs as logs
from aws_cdk import aws_s3 as s3
from aws_cdk import aws_sns as sns
from aws_cdk import aws_ssm as ssm
from constructs import Construct

from common.names import log_group_name, model_parameter, stack_name
from common.run_record import RESULTS
from infra.acknowledge import AWS_KEY, INLINE, acknowledge, acknowledge_objects
from infra.budget_action import BudgetAction
from infra.config import Config
from infra.dashboard import Dashboard
from infra.job_role import PREPARATION, TRAINING, JobRole
from infra.launcher_role import LATER, LauncherRole
from infra.network import TrainingNetwork
from infra.no_machine_alarm import NoMachineAlarm
from infra.spot_trainer import SpotTrainer
from infra.statements import (
    acknowledge_groups,
    allow,
    book,
    cancel_bookings,
    group_arns,
    list_prefixes,
    on_objects,
    use_key,
)

NO_MODEL = "none: run python -m training.launch first"  # SageMaker's error message quotes it
# Keys in the bucket, only those in use: tests/infra/test_permissions.py reports any others.
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
SESSIONS = "Session Manager's actions cannot be limited to a resource."
USER_DATA = Path(__file__).with_name("user_data.sh")


class TrainStack(Stack):
    """Network, groups of machines, roles, log group, and the parameter of the newest model."""

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
        # If any of its properties changes, CloudFormation resets the value to NO_MODEL.
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
        trainer = SpotTrainer(
            self,
            "Trainer",
            config=config,
            network=TrainingNetwork(self, "Network"),
            key=key,
            user_data=self._user_data(config, bucket, alerts),
        )
        self._grant_machine(trainer.role, config, bucket, alerts, key)
        jobs = JobRole(self, "TrainingJob", access=TRAINING, bucket=bucket, key=key).role
        preparation = JobRole(
            self, "PreparationJob", access=PREPARATION, bucket=bucket, key=key
        ).role
        launcher = LauncherRole(
            self,
            "Launcher",
            config=config,
            bucket=bucket,
            key=key,
            training_job_role=jobs,
            model=self.model,
            alerts=alerts,
        ).role
        if not key:
            acknowledge(self.log_group, ["CloudWatchLogGroupEncrypted", "CKV_AWS_158"], AWS_KEY)
        if config.over_budget == "deny":
            BudgetAction(
                self,
                "OverBudget",
                config=config,
                launcher=launcher,
                bucket=bucket,
                alerts=alerts,
            )
        Dashboard(self, "Dashboard", config=config, log_group=self.log_group)
        NoMachineAlarm(self, "NoMachine", config=config, alerts=alerts)

        CfnOutput(
            self,
            "GroupNames",
            value=",".join(config.group_names),
            description="The group that a launch starts, and that of the fallback",
        )
        CfnOutput(self, "LauncherRoleArn", value=launcher.role_arn)
        CfnOutput(self, "TrainingJobRoleArn", value=jobs.role_arn)
        CfnOutput(self, "PreparationJobRoleArn", value=preparation.role_arn)
        CfnOutput(self, "ModelParameterName", value=self.model.parameter_name)

    def _user_data(self, config: Config, bucket: s3.IBucket, alerts: sns.ITopic) -> str:
        return boot_script(
            {
                "BUCKET": bucket.bucket_name,
                "GROUP_NAMES": " ".join(config.group_names),
                "MODEL_PARAMETER": model_parameter(config.name),
                "TOPIC_ARN": alerts.topic_arn,
                "LOG_GROUP": log_group_name(config.name),
                "AWS_DEFAULT_REGION": self.region,
                "VOLUME_GIB": str(config.volume_gib),
            }
        )

    def _grant_machine(
        self,
        role: iam.Role,
        config: Config,
        bucket: s3.IBucket,
        alerts: sns.ITopic,
        key: kms.IKey | None,
    ) -> None:
        groups = group_arns(self, config.group_names)
        for statement in (
            list_prefixes(bucket, MACHINE_LISTS),
            on_objects("Read", "s3:GetObject", bucket, MACHINE_READS),
            on_objects("Write", "s3:PutObject", bucket, MACHINE_WRITES),
            on_objects("BreakOff", "s3:AbortMultipartUpload", bucket, ["checkpoints/*"]),
            on_objects("Release", "s3:DeleteObject", bucket, ["control/current.json"]),
            allow("EndTheRun", ["autoscaling:SetDesiredCapacity"], groups),
            allow("Publish", ["ssm:PutParameter"], [self.model.parameter_arn]),
            allow("Notify", ["sns:Publish"], [alerts.topic_arn]),
            allow(
                "Log",
                ["logs:CreateLogStream", "logs:PutLogEvents"],
                [self.log_group.log_group_arn],
            ),
            # Session Manager, whose managed policy would read every parameter of the account.
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
        if key:
            role.add_to_policy(use_key(key, ["s3", "sns"]))
        if fallback := groups[1:]:
            role.add_to_policy(book("PutOffTheFallback", fallback))
            role.add_to_policy(cancel_bookings("CancelTheFallback", fallback))
        acknowledge_objects(role, bucket, MACHINE_READS + MACHINE_WRITES, LATER)
        acknowledge_groups(role, config.group_names)
        acknowledge(role, "IAM5[Resource::*]", SESSIONS)
        acknowledge(role.node.find_child("DefaultPolicy"), "CKV_AWS_111", SESSIONS)
        acknowledge(role, "IAMNoInlinePolicy", INLINE)


def boot_script(variables: Mapping[str, str]) -> str:
    """The user data of a machine: exports of `variables`, followed by infra/user_data.sh."""
    exports = "".join(f"export {name}='{value}'\n" for name, value in variables.items())
    return f"#!/bin/bash\n{exports}{USER_DATA.read_text()}"
