"""Outputs of the deployed stacks. Imports no CDK, which is slow: all commands use this module."""

import os

import boto3
from botocore.exceptions import ClientError

from common.names import NAME_VARIABLE, chosen_name, stack_name

NO_BUDGETS = "none"  # BudgetStack's BudgetNames with budgets=no; an output must not be empty


class NotDeployedError(RuntimeError):
    """A stack or one of its outputs does not exist; the message is one line."""


class RegionsDifferError(NotDeployedError):
    """The environment names two regions; the message is one line."""


def check_region() -> None:
    """Raise RegionsDifferError if the CDK and boto3 would use different regions.

    The CDK prefers AWS_REGION; boto3 reads AWS_DEFAULT_REGION, then the profile.
    """
    cdk = os.environ.get("AWS_REGION")
    if not cdk:
        return
    ours = boto3.Session().region_name
    if ours and ours != cdk:
        source = "AWS_DEFAULT_REGION is" if "AWS_DEFAULT_REGION" in os.environ else "the profile's"
        raise RegionsDifferError(
            f"AWS_REGION is {cdk} and {source} {ours}: run "
            "`export AWS_DEFAULT_REGION=$AWS_REGION`, or `unset AWS_REGION`"
        )


def chosen_bucket(given: str | None) -> str:
    """Return the bucket `given` to a command, by default DataStack's.

    Raises NotDeployedError if there is neither, RegionsDifferError if the region is ambiguous.
    """
    check_region()
    return given or stack_output("DataStack", "BucketName")


def stack_output(stack: str, key: str) -> str:
    """Return an output of a deployed stack, such as `stack_output("DataStack", "BucketName")`.

    common.names.chosen_name selects the copy. Raises NotDeployedError if the stack or the output
    does not exist, RegionsDifferError if the region is ambiguous.
    """
    check_region()
    deployed = stack_name(chosen_name(), stack)
    cloudformation = boto3.client("cloudformation")
    try:
        (description,) = cloudformation.describe_stacks(StackName=deployed)["Stacks"]
    except ClientError as error:
        if "does not exist" not in str(error):
            raise
        raise NotDeployedError(
            f"{deployed} is not deployed here: run `npx cdk deploy {stack}`, or set "
            f"{NAME_VARIABLE} to the name of the deployed copy"
        ) from error
    for output in description.get("Outputs", []):
        if output["OutputKey"] == key:
            return output["OutputValue"]
    raise NotDeployedError(f"{deployed} has no output {key}: run `npx cdk deploy {stack}` again")
