"""Deployed stacks, finished runs and an endpoint in moto's account; the bucket is `ours`."""

import io
import json
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import boto3

from common.run_record import MODEL, RunRecord

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

PARAMETER = "/model"
ENDPOINT = "bins"


def deploy_stacks() -> None:
    """DataStack and TrainStack, before the first run."""
    _deploy("bin-counter-DataStack", BucketName="ours")
    _deploy("bin-counter-TrainStack", ModelParameterName=PARAMETER)
    choose("none: run python -m training.launch first")


def choose(uri: str) -> None:
    boto3.client("ssm").put_parameter(Name=PARAMETER, Value=uri, Type="String", Overwrite=True)


def chosen() -> str:
    return boto3.client("ssm").get_parameter(Name=PARAMETER)["Parameter"]["Value"]


def finish_run(
    s3: "S3Client",
    run_id: str,
    *,
    accuracy: float = 0.3,
    finished: str = "2026-11-23T10:00:00+00:00",
    state: str = "succeeded",
    model: Path | None = None,
    side: str = "test",
) -> str:
    """The record of a run with its model, the folder `model` packed; returns the model's URI."""
    record = RunRecord(s3, "ours", run_id)
    record.write("request.json", {"run_id": run_id, "arch": "resnet50", "dataset": "bins"})
    status = {"state": state, "message": "", "updated": finished, "attempts": []}
    record.write("status.json", status)
    interval = {"value": accuracy, "low": accuracy - 0.02, "high": accuracy + 0.02}
    record.write("metrics.json", {side: {"accuracy": interval, "mae": 1.234}})
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for file in sorted(model.iterdir()) if model else []:
            tar.add(file, arcname=file.name)
    s3.put_object(Bucket="ours", Key=record.key(MODEL), Body=packed.getvalue())
    return record.uri(MODEL)


def serve(uri: str) -> None:
    """EndpointStack, its endpoint serving the model at `uri`."""
    sagemaker = boto3.client("sagemaker")
    sagemaker.create_model(
        ModelName="m",
        ExecutionRoleArn="arn:aws:iam::123456789012:role/serving",
        PrimaryContainer={"Image": "image", "ModelDataUrl": uri},
    )
    serverless = {"MemorySizeInMB": 2048, "MaxConcurrency": 5}
    variant = {"VariantName": "AllTraffic", "ModelName": "m", "ServerlessConfig": serverless}
    sagemaker.create_endpoint_config(EndpointConfigName="c", ProductionVariants=[variant])  # type: ignore[list-item]
    sagemaker.create_endpoint(EndpointName=ENDPOINT, EndpointConfigName="c")
    _deploy("bin-counter-EndpointStack", EndpointName=ENDPOINT)


def _deploy(stack: str, **outputs: str) -> None:
    template = {
        "Resources": {"Any": {"Type": "AWS::SNS::Topic"}},
        "Outputs": {name: {"Value": value} for name, value in outputs.items()},
    }
    boto3.client("cloudformation").create_stack(StackName=stack, TemplateBody=json.dumps(template))
