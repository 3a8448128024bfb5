"""The model that the next deployment of the endpoint serves: the newest, or one chosen by hand."""

import boto3

from common.outputs import stack_output


class NoModelError(ValueError):
    """Raised before the first run has succeeded; the message is one line."""


def chosen_model(session: boto3.Session | None = None) -> str:
    """Return the URI of the model that the next deployment serves, from TrainStack's parameter.

    The parameter is read with the credentials of `session`, by default the user's own. Raises
    NotDeployedError without TrainStack, NoModelError before the first successful run.
    """
    name = stack_output("TrainStack", "ModelParameterName")
    ssm = (session or boto3).client("ssm")
    uri = ssm.get_parameter(Name=name)["Parameter"]["Value"]
    if not uri.startswith("s3://"):
        raise NoModelError("no run has succeeded yet: start one with `python -m training.launch`")
    return uri


def run_of(uri: str) -> str:
    """Return the id of the run that made the model at `uri`, on EC2 or on SageMaker."""
    return uri.split("/runs/")[1].split("/")[0]
