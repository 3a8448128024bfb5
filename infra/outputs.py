"""What the deployed stacks say of themselves. Imports no CDK: every command line uses it."""

import boto3
from botocore.exceptions import ClientError

NO_BUDGETS = "none"  # BudgetStack's BudgetNames with budgets=no; an output is never empty


class NotDeployedError(RuntimeError):
    """A stack, or an output of it, is not there; the message is one line."""


def stack_output(stack: str, key: str) -> str:
    """One output of a deployed stack, such as `stack_output("DataStack", "BucketName")`.

    Raises NotDeployedError when the stack or the output does not exist.
    """
    try:
        description = boto3.client("cloudformation").describe_stacks(StackName=stack)["Stacks"][0]
    except ClientError as error:
        if "does not exist" not in str(error):
            raise
        raise NotDeployedError(f"{stack} is not deployed here: run `cdk deploy {stack}`") from error
    for output in description.get("Outputs", []):
        if output["OutputKey"] == key:
            return output["OutputValue"]
    raise NotDeployedError(f"{stack} has no output {key}: run `cdk deploy {stack}` again")
