"""DataStack: the bucket that everything reads from and writes to."""

from aws_cdk import CfnOutput, Stack
from constructs import Construct

from infra.data_bucket import DataBucket


class DataStack(Stack):
    """The data bucket. It stays when the stack is destroyed."""

    def __init__(self, scope: Construct, id: str) -> None:
        super().__init__(scope, id, description="Bin counter: data sets, runs and models")
        self.bucket = DataBucket(self, "Data").bucket
        CfnOutput(self, "BucketName", value=self.bucket.bucket_name)
