"""DataStack: the data bucket, and the customer key, if any."""

from aws_cdk import CfnOutput, RemovalPolicy, Stack
from aws_cdk import aws_kms as kms
from constructs import Construct

from common.names import log_group_name, stack_name
from infra.config import Config
from infra.customer_key import CustomerKey
from infra.data_bucket import DataBucket


class DataStack(Stack):
    """The data bucket; `key` is None if AWS's own keys encrypt.

    Both are retained when the stack is destroyed, unless the setting `on_destroy` is `delete`.
    """

    def __init__(self, scope: Construct, id: str, *, config: Config) -> None:
        super().__init__(
            scope,
            id,
            stack_name=stack_name(config.name, id),
            description="Bin counter: data sets, runs and models",
        )
        keep = config.on_destroy == "keep"
        removal_policy = RemovalPolicy.RETAIN if keep else RemovalPolicy.DESTROY
        self.key: kms.IKey | None = None
        if config.kms == "customer":
            self.key = CustomerKey(
                self,
                "CustomerKey",
                log_group=log_group_name(config.name),
                removal_policy=removal_policy,
            ).key
        data = DataBucket(self, "Data", key=self.key, removal_policy=removal_policy)
        self.bucket = data.bucket
        CfnOutput(self, "BucketName", value=self.bucket.bucket_name)
