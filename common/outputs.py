"""What the deployed stacks say of themselves. Imports no CDK: every command line uses it."""

import os

import boto3
from botocore.exceptions import ClientError

from common.names import NAME_VARIABLE, chosen_name, stack_name

NO_BUDGETS = "none"  # BudgetStack's BudgetNames with budgets=no; an output is never empty


class NotDeployedError(RuntimeError):
    """A stack, or an output of it, is not there; the message is one line."""


class RegionsDifferError(NotDeployedError):
    """The environment names two regions, and the stacks may be in either; one line."""


def check_region() -> None:
    """Raises RegionsDifferError when the CDK and boto3 would take different regions.

    The CDK prefers AWS_REGION; boto3 reads AWS_DEFAULT_REGION, or else the profile.
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
    """The bucket that a command was given, or else DataStack's.

    Raises NotDeployedError without either, or when the region is unclear.
    """
    check_region()
    return given or stack_output("DataStack", "BucketName")


def stack_output(stack: str, key: str) -> str:
    """One output of a deployed stack, such as `stack_output("DataStack", "BucketName")`.

    Of several copies, that of common.names.chosen_name. Raises NotDeployedError when the stack or
    the output does not exist, or its region is unclear.
    """
    check_region()
    deployed = stack_name(chosen_name(), stack)
    try:
        description = boto3.client("cloudformation").describe_stacks(StackName=deployed)["Stacks"][
            0
        ]
    except ClientError as error:
        if "does not exist" not in str(error):
            raise
        raise NotDeployedError(
            f"{deployed} is not deployed here: run `npx cdk deploy {stack}`, or set "
            f"{NAME_VARIABLE} to the name of the copy that is"
        ) from error
    for output in description.get("Outputs", []):
        if output["OutputKey"] == key:
            return output["OutputValue"]
    raise NotDeployedError(f"{deployed} has no output {key}: run `npx cdk deploy {stack}` again")
