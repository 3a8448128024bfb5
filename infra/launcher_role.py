"""The role that training.launch and training.sagemaker take: starts runs, and watches them."""

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
from infra.acknowledge import acknowledge, acknowledge_objects
from infra.statements import allow, book, cancel_bookings, list_prefixes, on_objects, use_key

# Keys in the bucket, no more than are used: tests/infra/test_permissions.py tells of one too many.
LISTS = ["checkpoints/*", "control/*", "datasets/*", "runs/*", "runtime/*", "weights/*"]
RECORD = ("logs/*", "metrics.json", "metrics.jsonl", "request.json", "status.json")
READS = [
    "control/current.json",
    "datasets/*/manifest.json",
    *(f"runs/*/{name}" for name in (*RECORD, "output/output.tar.gz")),
]
REQUEST = ("code.tar.gz", "request.json")
# What a training job left: its model stays where SageMaker wrote it.
TAKEN_UP = [name for name in RESULTS if name != MODEL]
WRITES = [
    "control/current.json",
    *(f"runs/*/{name}" for name in (*REQUEST, "status.json", "input/sm_drivers/*", *TAKEN_UP)),
]
LONGEST_SECONDS = 7 * 24 * 3600  # of a training job; training.launcher.arguments has it in hours


class LauncherRole(Construct):
    """`role` may steer one group, and ask SageMaker for jobs of ours in one role."""

    def __init__(
        self,
        scope: Construct,
        id: str,
        *,
        bucket: s3.IBucket,
        key: kms.IKey | None,
        group_arns: Sequence[str],
        group_wildcards: Sequence[str],
        training_job_role: iam.IRole,
        model: ssm.IStringParameter,
        alerts: sns.ITopic,
        name: str,
    ) -> None:
        super().__init__(scope, id)
        self._jobs = f"{job_name_prefix(name)}*"
        self.role = iam.Role(
            self,
            "Role",
            assumed_by=iam.AccountRootPrincipal(),
            description="Starts training runs",
        )
        for statement in (
            *_on_the_bucket(bucket),
            *_on_the_groups(group_arns),
            *self._on_sagemaker(training_job_role),
            *self._on_the_account(),
            allow("SeeWhoIsTold", ["sns:ListSubscriptionsByTopic"], [alerts.topic_arn]),
            allow("FindTheModel", ["ssm:GetParameter"], [model.parameter_arn]),
            allow("Publish", ["ssm:PutParameter"], [model.parameter_arn]),
            *([use_key(key, ["s3"])] if key else []),
        ):
            self.role.add_to_policy(statement)
        self._acknowledge(bucket, group_wildcards)

    def _on_sagemaker(self, training_job_role: iam.IRole) -> list[iam.PolicyStatement]:
        job, search = self._arn("training-job"), self._arn("hyper-parameter-tuning-job")
        ask = allow(
            "AskForJobs",
            ["sagemaker:CreateHyperParameterTuningJob", "sagemaker:CreateTrainingJob"],
            [job, search],
        )
        ask.add_condition(
            "NumericLessThanEquals", {"sagemaker:MaxRuntimeInSeconds": str(LONGEST_SECONDS)}
        )
        lend = allow("LendTheRole", ["iam:PassRole"], [training_job_role.role_arn])
        lend.add_condition("StringEquals", {"iam:PassedToService": "sagemaker.amazonaws.com"})
        look_after = [
            "sagemaker:AddTags",
            "sagemaker:DescribeHyperParameterTuningJob",
            "sagemaker:DescribeTrainingJob",
            "sagemaker:ListTrainingJobsForHyperParameterTuningJob",
            "sagemaker:StopHyperParameterTuningJob",
            "sagemaker:StopTrainingJob",
        ]
        return [ask, lend, allow("LookAfterJobs", look_after, [job, search])]

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

    def _acknowledge(self, bucket: s3.IBucket, group_wildcards: Sequence[str]) -> None:
        role = self.role
        acknowledge_objects(role, bucket, READS + WRITES, "Runs and data sets are made later.")
        acknowledge(role, group_wildcards, "AWS makes up the middle of the ARN; the name is fixed.")
        acknowledge(role, "IAM5[Resource::*]", "Actions that describe know no resource.")
        acknowledge(
            role,
            "IAM5[Resource::arn:<AWS::Partition>:budgets::<AWS::AccountId>:budget/*]",
            "AWS makes up the names of the budgets; there is nothing in them but sums.",
        )
        for kind in ("training-job", "hyper-parameter-tuning-job"):
            acknowledge(
                role,
                "IAM5[Resource::arn:<AWS::Partition>:sagemaker:<AWS::Region>:<AWS::AccountId>:"
                f"{kind}/{self._jobs}]",
                "Each run gives its job a name; all begin alike.",
            )
        acknowledge(role, "IAMNoInlinePolicy", "The policy is only this role's, goes with it.")

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


def _on_the_groups(group_arns: Sequence[str]) -> list[iam.PolicyStatement]:
    steer = ["autoscaling:SetDesiredCapacity", "autoscaling:SuspendProcesses"]
    watch = [
        "autoscaling:DescribeAutoScalingGroups",
        "autoscaling:DescribeScalingActivities",
        "autoscaling:DescribeScheduledActions",
    ]
    fallback = group_arns[1:]
    return [
        allow("Steer", steer, group_arns),
        book("BookEndAndFallback", group_arns),
        *([cancel_bookings("CancelTheFallback", fallback)] if fallback else []),
        allow("Watch", watch, ["*"]),
    ]
