"""The roles of SageMaker jobs: for training, including the trials of a search, and preparation."""

from dataclasses import dataclass

from aws_cdk import Aws, CfnMapping, Stack
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_s3 as s3
from constructs import Construct

from infra.acknowledge import acknowledge_objects
from infra.sagemaker_container import acknowledge_container, run_container, sagemaker
from infra.statements import list_prefixes, on_objects, use_key
from infra.training_image import REPOSITORY, image_accounts


@dataclass(frozen=True, kw_only=True)
class JobAccess:
    """Permissions of one kind of jobs in the data bucket, as keys that may end in `*`."""

    kind: str  # of SageMaker's log group and metrics
    description: str
    lists: list[str]
    reads: list[str]
    writes: list[str]
    deletes: list[str]


TRAINING = JobAccess(
    kind="TrainingJobs",
    description="For training jobs on SageMaker",
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
    description="For SageMaker jobs that prepare data sets",
    lists=["jobs/*", "preparing/*"],
    reads=["datasets/*", "jobs/*", "preparing/*"],
    writes=["datasets/*", "preparing/*"],
    deletes=["datasets/*/manifest.json"],
)


class JobRole(Construct):
    """`role` may pull AWS's image, write logs and metrics, and has `access` to the data bucket."""

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
        stack = Stack.of(self)
        self.role = iam.Role(
            self, "Role", assumed_by=sagemaker(stack), description=access.description
        )
        account = self._image_account()
        image = f"arn:{stack.partition}:ecr:{stack.region}:{account}:repository/{REPOSITORY}"
        logs = f"/aws/sagemaker/{access.kind}"
        statements = [
            list_prefixes(bucket, access.lists),
            on_objects("Read", "s3:GetObject", bucket, access.reads),
            on_objects("Write", "s3:PutObject", bucket, access.writes),
            on_objects("BreakOff", "s3:AbortMultipartUpload", bucket, access.writes),
            *run_container(stack, image, namespace=logs, log_group=logs),
        ]
        if access.deletes:
            statements.append(on_objects("Delete", "s3:DeleteObject", bucket, access.deletes))
        if key:
            statements.append(use_key(key, ["s3"]))
        for statement in statements:
            self.role.add_to_policy(statement)
        keys = [*access.reads, *access.writes, *access.deletes]
        reason = "Run ids, job names and data sets are not known before they are created."
        acknowledge_objects(self.role, bucket, keys, reason)
        acknowledge_container(self.role, logs)

    def _image_account(self) -> str:
        """The AWS account that has the image, which depends on the region."""
        accounts = {region: {"account": account} for region, account in image_accounts().items()}
        mapping = CfnMapping(self, "ImageAccounts", mapping=accounts)
        return mapping.find_in_map(Aws.REGION, "account")
