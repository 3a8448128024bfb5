"""Requests to SageMaker for a training job or a search, built with its Python SDK."""

import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from sagemaker.core.helper.session_helper import Session
from sagemaker.core.parameter import CategoricalParameter, ContinuousParameter, IntegerParameter
from sagemaker.core.shapes import MetricDefinition
from sagemaker.train import ModelTrainer
from sagemaker.train.configs import (
    CheckpointConfig,
    Compute,
    InputData,
    OutputDataConfig,
    SourceCode,
    StoppingCondition,
    Tag,
)
from sagemaker.train.distributed import Torchrun
from sagemaker.train.tuner import HyperparameterTuner

from common.files import ROOT
from common.names import PART_KEY, PROJECT_KEY, chosen_name, job_name_prefix
from common.run_record import Work
from infra.training_image import training_image
from training.learn.metric_line import OBJECTIVE, metric_definitions
from training.search.space import SPACES

ENTRY = "entry.py"
REQUIREMENTS = ROOT / "training" / "requirements.txt"
IN_THE_IMAGE = ("torch==", "torchvision==")  # built for its CPU or GPU
NO_TELEMETRY = {
    "SchemaVersion": "1.0",
    "SageMaker": {"PythonSDK": {"Modules": {"TelemetryOptOut": True}}},
}
# The SDK's check demands permissions that TrainStack's role neither has nor needs.
os.environ.setdefault("SAGEMAKER_VALIDATE_ROLE", "false")


@dataclass(frozen=True, kw_only=True)
class Job:
    """A training job, or the common part of all trials of a search."""

    run_id: str
    work: Work
    instance_type: str
    instances: int
    volume_gib: int
    spot: bool
    max_seconds: int
    max_wait_seconds: int  # for spot capacity, including the training
    hyperparameters: Mapping[str, Any]  # flags of training.train by name


def tags() -> dict[str, str]:
    """Return the tags that the stacks' resources have, too."""
    return {PROJECT_KEY: chosen_name(), PART_KEY: "training"}


class DryRunError(Exception):
    """Raised in a dry run instead of the call that starts a job; `request` has its parameters."""

    def __init__(self, request: dict[str, Any]) -> None:
        super().__init__("a dry run starts nothing")
        self.request = request


class RunSession(Session):  # type: ignore[misc]  # untyped
    """A session of the SDK that uses the data bucket.

    If `dry`, it writes nothing, and a call that starts a job raises DryRunError instead. Otherwise,
    `before` is called with the parameters before each call that starts a job.
    """

    def __init__(
        self,
        session: boto3.Session,
        bucket: str,
        *,
        dry: bool = False,
        before: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> None:
        self._bucket, self._dry = bucket, dry

        def before_start(params: dict[str, Any], **_: Any) -> None:
            if dry:
                raise DryRunError(params)
            before(params)

        for operation in ("CreateTrainingJob", "CreateHyperParameterTuningJob"):
            session.events.register(f"provide-client-params.sagemaker.{operation}", before_start)
        super().__init__(session, default_bucket=bucket, sagemaker_config=NO_TELEMETRY)

    def default_bucket(self) -> str:
        """Return the bucket without the SDK's check, for which the launcher has no permission."""
        return self._bucket

    def upload_data(self, path: str, bucket: str, key_prefix: str, **keywords: Any) -> str:
        """Upload a folder unless in a dry run; return its URI."""
        if self._dry:
            return f"s3://{bucket}/{key_prefix}"
        uri: str = super().upload_data(path, bucket, key_prefix, **keywords)
        return uri


def files_for_the_container() -> dict[str, bytes]:
    """Return the files at the root of a job's code: the entry script and its requirements."""
    lines = REQUIREMENTS.read_text().splitlines(keepends=True)
    required = "".join(line for line in lines if not line.startswith(IN_THE_IMAGE))
    entry = Path(__file__).with_name(ENTRY).read_bytes()
    return {ENTRY: entry, "requirements.txt": required.encode()}


def model_trainer(session: RunSession, role: str, job: Job) -> ModelTrainer:
    """Build the SDK's trainer; code and results are in runs/<id>/."""
    bucket = session.default_bucket()
    folder = f"s3://{bucket}/runs/{job.run_id}"
    name = f"{job_name_prefix(chosen_name())}{job.work['arch']}-{secrets.token_hex(2)}"
    trainer = ModelTrainer(
        sagemaker_session=session,
        role=role,
        training_image=training_image(job.instance_type, session.boto_region_name),
        base_job_name=name.replace("_", "-"),  # the SDK appends the time, to the second
        input_s3_key_prefix=f"runs/{job.run_id}",
        source_code=SourceCode(
            source_dir=f"{folder}/code.tar.gz", entry_script=ENTRY, requirements="requirements.txt"
        ),
        distributed=Torchrun() if job.instances > 1 else None,
        compute=Compute(
            instance_type=job.instance_type,
            instance_count=job.instances,
            volume_size_in_gb=job.volume_gib,
            enable_managed_spot_training=job.spot,
        ),
        input_data_config=[
            InputData(channel_name=channel, data_source=f"s3://{bucket}/{key}")
            for channel, key in (
                ("data", f"datasets/{job.work['dataset']}/"),
                ("weights", f"weights/{job.work['arch']}.pth"),
            )
        ],
        output_data_config=OutputDataConfig(s3_output_path=folder),
        checkpoint_config=CheckpointConfig(s3_uri=f"s3://{bucket}/checkpoints/{job.run_id}/"),
        stopping_condition=StoppingCondition(
            max_runtime_in_seconds=job.max_seconds,
            max_wait_time_in_seconds=job.max_wait_seconds if job.spot else None,
        ),
        # A progress bar never ends its line, so CloudWatch could not show it.
        environment={"RUN_ID": job.run_id, "TQDM_DISABLE": "1"},
        hyperparameters=dict(job.hyperparameters),
        tags=[Tag(key=key, value=value) for key, value in tags().items()],
    )
    definitions = [MetricDefinition(**_lower(each)) for each in metric_definitions()]
    trainer.with_metric_definitions(definitions)
    return trainer


def tuner(
    trainer: ModelTrainer, mode: str, *, trials: int, parallel: int, max_seconds: int, seed: int
) -> HyperparameterTuner:
    """Build a search over the ranges of `mode` for the lowest loss, of at most `max_seconds`."""
    if mode == "finetune":
        # All trials would share one folder, so each would download the checkpoints of all others.
        trainer.checkpoint_config = None
    if trainer.distributed:
        # Tuning jobs have no container entry point, so the image's toolkit starts the trials.
        trainer.hyperparameters["sagemaker_torch_distributed_enabled"] = "true"
    # The SDK has no other way to choose the prefix of a search's driver files.
    trainer.base_job_name = trainer.input_s3_key_prefix
    return HyperparameterTuner(
        trainer,
        objective_metric_name=OBJECTIVE,
        objective_type="Minimize",
        hyperparameter_ranges={name: _range(values) for name, values in SPACES[mode].items()},
        metric_definitions=metric_definitions(),
        strategy="Bayesian",
        max_jobs=trials,
        max_parallel_jobs=parallel,
        max_runtime_in_seconds=max_seconds,
        early_stopping_type="Auto",
        random_seed=seed,
        tags=[{"Key": key, "Value": value} for key, value in tags().items()],
    )


def _range(
    values: FloatDistribution | IntDistribution | CategoricalDistribution,
) -> ContinuousParameter | IntegerParameter | CategoricalParameter:
    match values:
        case CategoricalDistribution():
            return CategoricalParameter(list(values.choices))
        case IntDistribution():
            return IntegerParameter(values.low, values.high)
        case FloatDistribution():
            scaling = "Logarithmic" if values.log else "Linear"
            return ContinuousParameter(values.low, values.high, scaling)


def _lower(definition: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in definition.items()}
