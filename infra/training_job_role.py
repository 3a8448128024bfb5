"""The role that SageMaker takes for training jobs and the trials of a search."""

from aws_cdk import Aws, CfnMapping, Stack
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_s3 as s3
from constructs import Construct

from infra.acknowledge import acknowledge, acknowledge_objects
from infra.statements import allow, list_prefixes, on_objects, use_key
from training.sagemaker_image import REPOSITORY, image_accounts

JOBS = "bin-counter-*"  # names of training jobs and searches, by training.sagemaker_request
LOG_GROUP = "log-group:/aws/sagemaker/TrainingJobs:*"
METRICS = "/aws/sagemaker/TrainingJobs"
LISTS = ["checkpoints/*", "datasets/*", "runs/*", "weights/*"]
READS = [
    "checkpoints/*",
    "datasets/*",
    "runs/*/code.tar.gz",
    "runs/*/input/sm_drivers/*",
    "weights/*",
]
WRITES = ["checkpoints/*", "runs/*/output/model.tar.gz", "runs/*/output/output.tar.gz"]


class TrainingJobRole(Construct):
    """`role` reads data, weights and a run's code, and writes checkpoints and what a job leaves."""

    def __init__(
        self, scope: Construct, id: str, *, bucket: s3.IBucket, key: kms.IKey | None
    ) -> None:
        super().__init__(scope, id)
        stack = Stack.of(self)
        self.role = iam.Role(
            self,
            "Role",
            assumed_by=iam.ServicePrincipal(
                "sagemaker.amazonaws.com",
                conditions={"StringEquals": {"aws:SourceAccount": stack.account}},
            ),
            description="SageMaker's, for training jobs",
        )
        measure = allow("Measure", ["cloudwatch:PutMetricData"], ["*"])
        measure.add_condition("StringEquals", {"cloudwatch:namespace": METRICS})
        statements = [
            list_prefixes(bucket, LISTS),
            on_objects("Read", "s3:GetObject", bucket, READS),
            on_objects("Write", "s3:PutObject", bucket, WRITES),
            on_objects("BreakOff", "s3:AbortMultipartUpload", bucket, WRITES),
            allow("LogIn", ["ecr:GetAuthorizationToken"], ["*"]),
            allow(
                "PullImage",
                [
                    "ecr:BatchCheckLayerAvailability",
                    "ecr:BatchGetImage",
                    "ecr:GetDownloadUrlForLayer",
                ],
                [
                    f"arn:{stack.partition}:ecr:{stack.region}:{self._image_account()}:"
                    f"repository/{REPOSITORY}"
                ],
            ),
            allow(
                "Log",
                [
                    "logs:CreateLogGroup",
                    "logs:CreateLogStream",
                    "logs:DescribeLogStreams",
                    "logs:PutLogEvents",
                ],
                [f"arn:{stack.partition}:logs:{stack.region}:{stack.account}:{LOG_GROUP}"],
            ),
            measure,
        ]
        if key:
            statements.append(use_key(key, ["s3"]))
        for statement in statements:
            self.role.add_to_policy(statement)
        self._acknowledge(bucket)

    def _image_account(self) -> str:
        """AWS's, which differs by region."""
        accounts = {region: {"account": account} for region, account in image_accounts().items()}
        mapping = CfnMapping(self, "ImageAccounts", mapping=accounts)
        return mapping.find_in_map(Aws.REGION, "account")

    def _acknowledge(self, bucket: s3.IBucket) -> None:
        role = self.role
        acknowledge_objects(
            role, bucket, READS + WRITES, "Run ids, job names and data sets are made later."
        )
        acknowledge(
            role,
            f"IAM5[Resource::arn:<AWS::Partition>:logs:<AWS::Region>:<AWS::AccountId>:{LOG_GROUP}]",
            "SageMaker names the log streams.",
        )
        acknowledge(role, "IAM5[Resource::*]", "Login to ECR and PutMetricData know no resource.")
        acknowledge(role, "IAMNoInlinePolicy", "The policy is this role's alone, goes with it.")
