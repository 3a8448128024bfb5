"""List the trained models with their metrics, or choose the one that is deployed next.

For example:

    python -m serving.models
    python -m serving.models use RUN_ID

Both use your own credentials, as `cdk deploy` does.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import boto3
from botocore.exceptions import BotoCoreError, ClientError
from tqdm import tqdm

from common.chosen_model import NoModelError, chosen_model
from common.command import in_one_line, interruptible
from common.flags import command_line
from common.outputs import NotDeployedError, stack_output
from common.run_record import MODEL, RunRecord
from common.table import table

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

app = command_line("python -m serving.models", __doc__)
HEADER = ("run", "finished (UTC)", "arch", "data set", "exactly right", "MAE", "MB", "")


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A model, as the record of its run describes it."""

    run_id: str
    uri: str
    finished: str  # ISO 8601, UTC
    arch: str
    dataset: str
    accuracy: dict[str, float]  # share of exact counts: value, low, high (95 % interval)
    mae: float | None  # mean absolute error in items
    size: int  # bytes, packed


def trained_models(s3: "S3Client", bucket: str) -> list[TrainedModel]:
    """The models of all runs in `bucket` that succeeded, oldest first."""
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix="runs/")
    sizes = {item["Key"]: item["Size"] for page in pages for item in page.get("Contents", [])}
    packed = [key for key in sizes if key.endswith(f"/{MODEL}")]  # a job's is in its own folder
    models = []
    for key in tqdm(packed, desc="runs", unit="run", delay=1, leave=False):
        record = RunRecord(s3, bucket, key.split("/")[1])
        if record.key("status.json") not in sizes:
            continue  # a trial of a search
        status = record.status()
        if status["state"] != "succeeded":
            continue  # it ended between the upload and its last status
        if key != record.key(MODEL) and status["attempts"][-1]["instance_id"] not in key:
            continue  # of an attempt that was stopped before the one that succeeded
        request = record.request()
        judged = record.judged()
        models.append(
            TrainedModel(
                run_id=record.run_id,
                uri=f"s3://{bucket}/{key}",
                finished=status["updated"],
                arch=request["arch"],
                dataset=request["dataset"],
                accuracy=judged["accuracy"],
                mae=judged.get("mae"),
                size=sizes[key],
            )
        )
    return sorted(models, key=lambda model: model.finished)


def served_model() -> str:
    """URI of the model that the endpoint serves. Raises NotDeployedError without an endpoint."""
    sagemaker = boto3.client("sagemaker")
    endpoint = sagemaker.describe_endpoint(
        EndpointName=stack_output("EndpointStack", "EndpointName")
    )
    configuration = sagemaker.describe_endpoint_config(
        EndpointConfigName=endpoint["EndpointConfigName"]
    )
    (variant,) = configuration["ProductionVariants"]
    return sagemaker.describe_model(ModelName=variant["ModelName"])["PrimaryContainer"][
        "ModelDataUrl"
    ]


def use_model(s3: "S3Client", bucket: str, run_id: str) -> str:
    """Let the next deploy serve the model of `run_id`; returns the model's URI.

    Raises NoModelError when that run has none.
    """
    uris = {model.run_id: model.uri for model in trained_models(s3, bucket)}
    if run_id not in uris:
        raise NoModelError(f"run {run_id} has no model: `python -m serving.models` lists them")
    name = stack_output("TrainStack", "ModelParameterName")
    boto3.client("ssm").put_parameter(Name=name, Value=uris[run_id], Overwrite=True)
    return uris[run_id]


def print_models(models: Sequence[TrainedModel], chosen: str, served: str | None) -> None:
    """Print a table that marks the model that is deployed next and the one that is served."""
    remarks: dict[str | None, list[str]] = {model.uri: [] for model in models}
    for uri, remark in ((chosen, "deployed next"), (served, "served")):
        if uri in remarks:
            remarks[uri].append(remark)
    print(table(HEADER, [(*_cells(model), ", ".join(remarks[model.uri])) for model in models]))


def _cells(model: TrainedModel) -> tuple[str, ...]:
    value, low, high = (100 * model.accuracy[name] for name in ("value", "low", "high"))
    return (
        model.run_id,
        model.finished[:16].replace("T", " "),
        model.arch,
        model.dataset,
        f"{value:.1f}% ({low:.1f} to {high:.1f})",
        "" if model.mae is None else f"{model.mae:.2f}",
        f"{model.size / 1e6:.1f}",
    )


@app.default
def list_models() -> None:
    """List every model with its metrics, oldest first (the default)."""
    bucket, chosen = stack_output("DataStack", "BucketName"), chosen_model()
    try:
        served = served_model()
    except NotDeployedError:
        served = None
        print("no endpoint is deployed", file=sys.stderr)
    print_models(trained_models(boto3.client("s3"), bucket), chosen, served)


app.command(list_models, name="list")


@app.command
def use(run_id: str, /) -> None:
    """Choose the model that the next deploy of EndpointStack serves.

    Args:
        run_id: Run that trained the model, as `list` shows it.
    """
    uri = use_model(boto3.client("s3"), stack_output("DataStack", "BucketName"), run_id)
    print(f"next: {uri}\nrun `npx cdk deploy EndpointStack` to serve it")


@interruptible()
def main(arguments: Sequence[str] | None = None) -> None:
    """Exit code 1 when there is no model."""
    try:
        app(arguments)
    except (NoModelError, NotDeployedError, BotoCoreError, ClientError) as error:
        print(f"error: {in_one_line(error)}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
