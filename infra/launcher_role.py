"""The role of training.launch and training.sagemaker: it starts runs and watches them."""

from collections.abc import Sequence

from aws_cdk import ArnFormat, Stack
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_s3 as s3
from aws_cdk import aws_sns as sns
from aws_cdk import aws_ssm as ssm
from constructs import Construct

from common.names import job_name_prefix
from common.run_record import MODEL, RESULTS
from infra.acknowledge import INLINE, acknowledge, acknowledge_objects
from infra.config import Config
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

# Keys in the bucket, only those in use: tests/infra/test_permissions.py reports any others.
LISTS = ["checkpoints/*", "control/*", "datasets/*", "runs/*", "runtime/*", "weights/*"]
RECORD = ("logs/*", "metrics.json", "metrics.jsonl", "request.json", "status.json")
READS = [
    "control/current.json",
    "datasets/*/manifest.json",
    *(f"runs/*/{name}" for name in (*RECORD, "output/output.tar.gz")),
]
REQUEST = ("code.tar.gz", "request.json")
# Imported from a training job; its model stays where SageMaker wrote it.
TAKEN_UP = [name for name in RESULTS if name != MODEL]
WRITES = [
    "control/current.json",
    *(f"runs/*/{name}" for name in (*REQUEST, "status.json", "input/sm_drivers/*", *TAKEN_UP)),
]
LATER = "Run ids and data sets are not known before they are created."
LONGEST_SECONDS = 7 * 24 * 3600  # of a training job; common.flags.Hours has the same limit


class LauncherRole(Construct):
    """`role` may control the groups, and create SageMaker jobs that use one role."""

    def __init__(
        self,
        scope: Construct,
        id: str,
        *,
        config: Config,
        bucket: s3.IBucket,
        key: kms.IKey | None,
        training_job_role: iam.IRole,
        model: ssm.IStringParameter,
        alerts: sns.ITopic,
    ) -> None:
        super().__init__(scope, id)
        self._jobs = f"{job_name_prefix(config.name)}*"
        self.role = iam.Role(
            self,
            "Role",
            assumed_by=iam.AccountRootPrincipal(),
            description="Starts training runs",
        )
        for statement in (
            *_on_the_bucket(bucket),
            *_on_the_groups(group_arns(Stack.of(self), config.group_names)),
            *self._on_sagemaker(training_job_role),
            *self._on_the_account(),
            allow("SeeWhoIsTold", ["sns:ListSubscriptionsByTopic"], [alerts.topic_arn]),
            allow("FindTheModel", ["ssm:GetParameter"], [model.parameter_arn]),
            allow("Publish", ["ssm:PutParameter"], [model.parameter_arn]),
            *([use_key(key, ["s3"])] if key else []),
        ):
            self.role.add_to_policy(statement)
        self._acknowledge(bucket, config)

    def _on_sagemaker(self, training_job_role: iam.IRole) -> list[iam.PolicyStatement]:
        job, search = self._arn("training-job"), self._arn("hyper-parameter-tuning-job")
        create = ["sagemaker:CreateHyperParameterTuningJob", "sagemaker:CreateTrainingJob"]
        longest = {"NumericLessThanEquals": {"sagemaker:MaxRuntimeInSeconds": str(LONGEST_SECONDS)}}
        to_sagemaker = {"StringEquals": {"iam:PassedToService": "sagemaker.amazonaws.com"}}
        look_after = [
            "sagemaker:AddTags",
            "sagemaker:DescribeHyperParameterTuningJob",
            "sagemaker:DescribeTrainingJob",
            "sagemaker:ListTrainingJobsForHyperParameterTuningJob",
            "sagemaker:StopHyperParameterTuningJob",
            "sagemaker:StopTrainingJob",
        ]
        return [
            allow("AskForJobs", create, [job, search], longest),
            allow("LendTheRole", ["iam:PassRole"], [training_job_role.role_arn], to_sagemaker),
            allow("LookAfterJobs", look_after, [job, search]),
        ]

    def _on_the_account(self) -> list[iam.PolicyStatement]:
        checks = [
            "ec2:DescribeInstanceTypes",
            "freetier:GetAccountPlanState",
            "servicequotas:GetServiceQuota",
            "servicequotas:ListServiceQuotas",
        ]
        budgets = Stack.of(self).format_arn(
            service="budgets", region="", resource="budget", resource_name="*"
        )
        return [
            allow("CheckTheAccount", checks, ["*"]),
            allow("CheckBudgets", ["budgets:ViewBudget"], [budgets]),
        ]

    def _acknowledge(self, bucket: s3.IBucket, config: Config) -> None:
        role = self.role
        acknowledge_objects(role, bucket, READS + WRITES, LATER)
        acknowledge_groups(role, config.group_names)
        acknowledge(
            role, "IAM5[Resource::*]", "Actions that describe cannot be limited to a resource."
        )
        acknowledge(
            role,
            "IAM5[Resource::arn:<AWS::Partition>:budgets::<AWS::AccountId>:budget/*]",
            "AWS generates the names of the budgets, which contain nothing but sums.",
        )
        jobs = "arn:<AWS::Partition>:sagemaker:<AWS::Region>:<AWS::AccountId>"
        for kind in ("training-job", "hyper-parameter-tuning-job"):
            finding = f"IAM5[Resource::{jobs}:{kind}/{self._jobs}]"
            acknowledge(role, finding, "Each run names its job; all names have the same prefix.")
        acknowledge(role, "IAMNoInlinePolicy", INLINE)

    def _arn(self, kind: str) -> str:
        return Stack.of(self).format_arn(
            service="sagemaker",
            resource=kind,
            resource_name=self._jobs,
            arn_format=ArnFormat.SLASH_RESOURCE_NAME,
        )


def _on_the_bucket(bucket: s3.IBucket) -> list[iam.PolicyStatement]:
    return [
        list_prefixes(bucket, LISTS),
        on_objects("Read", "s3:GetObject", bucket, READS),
        on_objects("Request", "s3:PutObject", bucket, WRITES),
        on_objects("Cancel", "s3:DeleteObject", bucket, ["control/current.json"]),
    ]


def _on_the_groups(arns: Sequence[str]) -> list[iam.PolicyStatement]:
    steer = ["autoscaling:SetDesiredCapacity", "autoscaling:SuspendProcesses"]
    watch = [
        "autoscaling:DescribeAutoScalingGroups",
        "autoscaling:DescribeScalingActivities",
        "autoscaling:DescribeScheduledActions",
    ]
    fallback = arns[1:]
    return [
        allow("Steer", steer, arns),
        book("BookEndAndFallback", arns),
        *([cancel_bookings("CancelTheFallback", fallback)] if fallback else []),
        allow("Watch", watch, ["*"]),
    ]
