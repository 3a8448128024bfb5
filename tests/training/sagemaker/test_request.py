"""What SageMaker is asked for, held against botocore's model of its API."""

import io
import re
import tarfile
from typing import Any

import boto3
import pytest
from botocore.validate import ParamValidator
from packaging.requirements import Requirement
from sagemaker.core.config.config_manager import SageMakerConfig

from common.run_record import Work
from infra.training_image import training_image
from training.launcher.code import ON_SAGEMAKER, pack_code
from training.learn.metric_line import OBJECTIVE, metric_definitions
from training.sagemaker.request import (
    DryRunError,
    Job,
    RunSession,
    files_for_the_container,
    model_trainer,
    tuner,
)
from training.search.space import SPACES

ROLE = "arn:aws:iam::123456789012:role/TrainingJobRole"
RUN = "20261126-104204-efficientnet_lite0-ab12"
FOLDER = f"s3://bins/runs/{RUN}"


@pytest.fixture(autouse=True)
def nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """No call gets an answer."""
    # The SDK checks its schema, and its empty settings against it, for each of them: half the time.
    unchecked = staticmethod(lambda _=None: None)
    monkeypatch.setattr(SageMakerConfig, "validate_sagemaker_config", unchecked)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")


def job(arch: Any = "efficientnet_lite0", **changes: Any) -> Job:
    usual: dict[str, Any] = {
        "run_id": RUN,
        "work": Work(
            dataset="bins",
            arch=arch,
            train_arguments=["--epochs=3", "--profile=True"],
            mode="head",
            ensemble_size=1,
            epochs=3,
        ),
        "instance_type": "ml.m5.large",
        "instances": 1,
        "volume_gib": 30,
        "spot": True,
        "max_seconds": 3600,
        "max_wait_seconds": 7200,
        "hyperparameters": {"arch": arch, "epochs": 3, "profile": True},
    }
    return Job(**usual | changes)


def training_job(**changes: Any) -> dict[str, Any]:
    trainer = model_trainer(RunSession(boto3.Session(), "bins", dry=True), ROLE, job(**changes))
    with pytest.raises(DryRunError) as caught:
        trainer.train(wait=False)
    return valid("CreateTrainingJob", caught.value.request)


def tuning_job(mode: str = "head", **changes: Any) -> dict[str, Any]:
    trainer = model_trainer(RunSession(boto3.Session(), "bins", dry=True), ROLE, job(**changes))
    search = tuner(trainer, mode, trials=9, parallel=3, max_seconds=5400, seed=1)
    with pytest.raises(DryRunError) as caught:
        search.tune(inputs=trainer.input_data_config, job_name="bin-counter-1", wait=False)
    return valid("CreateHyperParameterTuningJob", caught.value.request)


def valid(operation: str, request: dict[str, Any]) -> dict[str, Any]:
    """The request, if botocore's model of the API takes it: shapes, and each text's pattern."""
    shape = boto3.client("sagemaker").meta.service_model.operation_model(operation).input_shape
    report = ParamValidator().validate(request, shape)
    assert not report.has_errors(), report.generate_report()
    return request


def channels(request: dict[str, Any]) -> dict[str, str]:
    return {
        each["ChannelName"]: each["DataSource"]["S3DataSource"]["S3Uri"]
        for each in request["InputDataConfig"]
    }


def test_a_job_reads_the_shards_the_weights_and_the_code_of_its_run() -> None:
    found = channels(training_job())
    assert found["data"] == "s3://bins/datasets/bins/"
    assert found["weights"] == "s3://bins/weights/efficientnet_lite0.pth"
    assert found["code"] == f"{FOLDER}/code.tar.gz"
    assert re.fullmatch(f"{FOLDER}/bin-counter-[a-z0-9-]+/input/sm_drivers", found["sm_drivers"])


def test_a_job_is_managed_spot_with_checkpoints_and_an_end() -> None:
    request = training_job()
    assert request["EnableManagedSpotTraining"] is True
    assert request["StoppingCondition"] == {
        "MaxRuntimeInSeconds": 3600,
        "MaxWaitTimeInSeconds": 7200,
    }
    assert request["CheckpointConfig"]["S3Uri"] == f"s3://bins/checkpoints/{RUN}/"
    assert request["RoleArn"] == ROLE
    assert request["OutputDataConfig"]["S3OutputPath"] == FOLDER
    assert {"Key": "project", "Value": "bin-counter"} in request["Tags"]


def test_a_job_on_demand_waits_for_nothing() -> None:
    request = training_job(spot=False)
    assert request["EnableManagedSpotTraining"] is False
    assert request["StoppingCondition"] == {"MaxRuntimeInSeconds": 3600}


@pytest.mark.parametrize("arch", ["resnet50", "efficientnet_lite0", "a" * 60])
def test_a_name_fits_the_roles_and_sagemaker_however_long_the_architecture(arch: str) -> None:
    name = training_job(arch=arch)["TrainingJobName"]
    assert re.fullmatch(r"bin-counter-[a-zA-Z0-9](-*[a-zA-Z0-9]){0,50}", name)
    assert len(name) <= 63


def test_the_image_is_aws_own_for_the_machine_and_the_region() -> None:
    assert training_image("ml.m5.large", "us-east-1") == (
        "763104351884.dkr.ecr.us-east-1.amazonaws.com/pytorch:2.14-cpu-amzn2023-sagemaker"
    )
    assert "-cu" in training_image("ml.g4dn.xlarge", "eu-west-1")
    assert training_job()["AlgorithmSpecification"]["TrainingImage"].startswith("763104351884.")


def test_losses_are_read_from_the_log() -> None:
    for algorithm in (
        training_job()["AlgorithmSpecification"],
        tuning_job()["TrainingJobDefinition"]["AlgorithmSpecification"],
    ):
        assert algorithm["MetricDefinitions"] == metric_definitions()


def test_several_machines_are_asked_for() -> None:
    assert training_job(instances=2)["ResourceConfig"]["InstanceCount"] == 2


@pytest.mark.parametrize("mode", sorted(SPACES))
def test_a_search_has_the_ranges_of_the_one_on_this_machine(mode: str) -> None:
    config = tuning_job(mode)["HyperParameterTuningJobConfig"]
    ranges = {each["Name"]: each for kind in config["ParameterRanges"].values() for each in kind}
    assert set(ranges) == set(SPACES[mode])
    assert ranges["learning_rate"]["ScalingType"] == "Logarithmic"
    assert ranges["batch_size"]["Values"] == [
        str(size) for size in SPACES[mode]["batch_size"].choices
    ]  # type: ignore[union-attr]
    assert config["HyperParameterTuningJobObjective"] == {
        "Type": "Minimize",
        "MetricName": OBJECTIVE,
    }
    assert config["ResourceLimits"] == {
        "MaxNumberOfTrainingJobs": 9,
        "MaxParallelTrainingJobs": 3,
        "MaxRuntimeInSeconds": 5400,
    }


def test_a_search_keeps_what_is_not_searched_for() -> None:
    static = tuning_job()["TrainingJobDefinition"]["StaticHyperParameters"]
    assert static["arch"] == "efficientnet_lite0"
    assert "epochs" not in static
    assert static["sagemaker_program"] == "entry.py"
    assert static["sagemaker_submit_directory"] == f"{FOLDER}/code.tar.gz"


def test_a_search_is_managed_spot_with_one_folder_of_checkpoints() -> None:
    definition = tuning_job()["TrainingJobDefinition"]
    assert definition["EnableManagedSpotTraining"] is True
    assert definition["CheckpointConfig"]["S3Uri"] == f"s3://bins/checkpoints/{RUN}/"
    assert definition["StoppingCondition"]["MaxWaitTimeInSeconds"] == 7200


def test_a_search_over_all_layers_keeps_no_checkpoints_that_every_trial_would_download() -> None:
    assert "CheckpointConfig" not in tuning_job("finetune")["TrainingJobDefinition"]


def test_a_search_on_several_machines_asks_the_toolkit_for_torchrun() -> None:
    static = tuning_job(instances=2)["TrainingJobDefinition"]["StaticHyperParameters"]
    assert static["sagemaker_torch_distributed_enabled"] == "true"
    alone = tuning_job()["TrainingJobDefinition"]["StaticHyperParameters"]
    assert "sagemaker_torch_distributed_enabled" not in alone


def test_the_code_has_its_entry_script_and_requirements_at_its_root() -> None:
    with tarfile.open(
        fileobj=io.BytesIO(pack_code(ON_SAGEMAKER, files_for_the_container()))
    ) as tar:
        names = set(tar.getnames())
        requirements = tar.extractfile("requirements.txt")
        assert requirements
        required = requirements.read().decode()
    assert {"entry.py", "training/train.py", "serving/container/preprocess.py"} <= names
    packages = {
        Requirement(line.partition("#")[0]).name
        for line in required.splitlines()
        if line.strip() and not line.startswith("#")
    }
    assert "onnxruntime" in packages
    assert packages.isdisjoint({"torch", "torchvision"}), "the image's own would be replaced"
