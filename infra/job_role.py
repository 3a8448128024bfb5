"""The roles that SageMaker takes for jobs: training and the trials of a search, and preparation."""

from dataclasses import dataclass

from aws_cdk import Aws, CfnMapping, Stack
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_s3 as s3
from constructs import Construct

from infra.acknowledge import acknowledge, acknowledge_objects
from infra.statements import allow, list_prefixes, on_objects, use_key
from infra.training_image import REPOSITORY, image_accounts


@dataclass(frozen=True, kw_only=True)
class JobAccess:
    """What jobs of one kind do in the data bucket, by keys that may end in `*`."""

    kind: str  # of SageMaker's log group and metrics
    description: str
    lists: list[str]
    reads: list[str]
    writes: list[str]
    deletes: list[str]


TRAINING = JobAccess(
    kind="TrainingJobs",
    description="SageMaker's, for training jobs",
    lists=["checkpoints/*", "datasets/*", "runs/*", "weights/*"],
    reads=[
        "checkpoints/*",
        "datasets/*",
        "runs/*/code.tar.gz",
        "runs/*/input/sm_drivers/*",
        "weights/*",
    ],
    writes=["checkpoints/*", "runs/*/output/model.tar.gz", "runs/*/output/output.tar.gz"],
    deletes=[],
)
PREPARATION = JobAccess(
    kind="ProcessingJobs",
    description="SageMaker's, for jobs that prepare data sets",
    lists=["jobs/*", "preparing/*"],
    reads=["datasets/*", "jobs/*", "preparing/*"],
    writes=["datasets/*", "preparing/*"],
    deletes=["datasets/*/manifest.json"],
)


class JobRole(Construct):
    """`role` may pull AWS's image, log and measure, and has `access` to the data bucket."""

    def __init__(
        self,
        scope: Construct,
        id: str,
        *,
        access: JobAccess,
        bucket: s3.IBucket,
        key: kms.IKey | None,
    ) -> None:
        super().__init__(scope, id)
        self._access = access
        self.role = iam.Role(
            self,
            "Role",
            assumed_by=iam.ServicePrincipal(
                "sagemaker.amazonaws.com",
                conditions={"StringEquals": {"aws:SourceAccount": Stack.of(self).account}},
            ),
            description=access.description,
        )
        statements = [
            list_prefixes(bucket, access.lists),
            on_objects("Read", "s3:GetObject", bucket, access.reads),
            on_objects("Write", "s3:PutObject", bucket, access.writes),
            on_objects("BreakOff", "s3:AbortMultipartUpload", bucket, access.writes),
            *self._of_the_container(),
        ]
        if access.deletes:
            statements.append(on_objects("Delete", "s3:DeleteObject", bucket, access.deletes))
        if key:
            statements.append(use_key(key, ["s3"]))
        for statement in statements:
            self.role.add_to_policy(statement)
        self._acknowledge(bucket)

    def _of_the_container(self) -> list[iam.PolicyStatement]:
        stack = Stack.of(self)
        measure = allow("Measure", ["cloudwatch:PutMetricData"], ["*"])
        namespace = f"/aws/sagemaker/{self._access.kind}"
        measure.add_condition("StringEquals", {"cloudwatch:namespace": namespace})
        pull = [
            "ecr:BatchCheckLayerAvailability",
            "ecr:BatchGetImage",
            "ecr:GetDownloadUrlForLayer",
        ]
        log = [
            "logs:CreateLogGroup",
            "logs:CreateLogStream",
            "logs:DescribeLogStreams",
            "logs:PutLogEvents",
        ]
        image = (
            f"arn:{stack.partition}:ecr:{stack.region}:{self._image_account()}:"
            f"repository/{REPOSITORY}"
        )
        group = f"arn:{stack.partition}:logs:{stack.region}:{stack.account}:{self._log_group}"
        return [
            allow("LogIn", ["ecr:GetAuthorizationToken"], ["*"]),
            allow("PullImage", pull, [image]),
            allow("Log", log, [group]),
            measure,
        ]

    @property
    def _log_group(self) -> str:
        return f"log-group:/aws/sagemaker/{self._access.kind}:*"

    def _image_account(self) -> str:
        """AWS's, which differs by region."""
        accounts = {region: {"account": account} for region, account in image_accounts().items()}
        mapping = CfnMapping(self, "ImageAccounts", mapping=accounts)
        return mapping.find_in_map(Aws.REGION, "account")

    def _acknowledge(self, bucket: s3.IBucket) -> None:
        role, access = self.role, self._access
        acknowledge_objects(
            role,
            bucket,
            [*access.reads, *access.writes, *access.deletes],
            "Run ids, job names and data sets are made later.",
        )
        acknowledge(
            role,
            "IAM5[Resource::arn:<AWS::Partition>:logs:<AWS::Region>:<AWS::AccountId>:"
            f"{self._log_group}]",
            "SageMaker names the log streams.",
        )
        acknowledge(role, "IAM5[Resource::*]", "Login to ECR and PutMetricData know no resource.")
        acknowledge(role, "IAMNoInlinePolicy", "The policy is this role's alone, goes with it.")
