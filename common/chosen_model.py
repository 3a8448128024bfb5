"""Which model the next deploy of the endpoint serves: the newest, or one chosen by hand."""

import boto3

from common.outputs import stack_output


class NoModelError(ValueError):
    """There is no such model; the message is one line."""


def chosen_model(session: boto3.Session | None = None) -> str:
    """URI of the model that the next deploy serves, by TrainStack's parameter.

    Read with your own credentials, or else with those of `session`.
    Raises NotDeployedError without TrainStack, NoModelError before the first successful run.
    """
    name = stack_output("TrainStack", "ModelParameterName")
    ssm = (session or boto3).client("ssm")
    uri = ssm.get_parameter(Name=name)["Parameter"]["Value"]
    if not uri.startswith("s3://"):
        raise NoModelError("no run has succeeded yet: run `python -m training.launch`")
    return uri


def run_of(uri: str) -> str:
    """Id of the run that made the model at `uri`, in our bucket or SageMaker's part of it."""
    return uri.split("/runs/")[1].split("/")[0]
