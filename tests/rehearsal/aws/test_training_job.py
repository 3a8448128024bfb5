"""training.train as SageMaker's container runs it: by the SDK's own drivers, without Docker."""

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import onnx
import psutil
import pytest
from moto import mock_aws
from onnx import numpy_helper

from common.run_record import Work
from data_prep.weights import save_weights
from rehearsal.aws import training_job as module
from rehearsal.aws.training_job import Host, JobFailedError, JobStoppedError, TrainingJob
from tests.support.packed import draw_photos, timeless_history, write_packed
from training.launcher.code import ON_SAGEMAKER, pack_code
from training.learn.metric_line import OBJECTIVE
from training.sagemaker.request import (
    DryRunError,
    Job,
    RunSession,
    files_for_the_container,
    model_trainer,
    tuner,
)

ARCH = "efficientnet_lite0"
RUN = "20261126-104204-efficientnet_lite0-ab12"
EPOCHS = 15
SETTINGS: dict[str, Any] = {
    "arch": ARCH,
    "epochs": EPOCHS,
    "batch_size": 16,
    "threads": 1,
    "checkpoint_seconds": 0,
    "int8": "no",
    "backbone_precision": "bfloat16",  # without the export that float32 features need
}


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The data bucket, with a data set, weights, and the code of the run."""
    folder = tmp_path_factory.mktemp("bucket")
    with pytest.MonkeyPatch.context() as patch, mock_aws():
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.delenv("AWS_ENDPOINT_URL", raising=False)
        s3 = boto3.client("s3")
        s3.create_bucket(Bucket="bins")
        data = write_packed(folder / "data", draw_photos(60), draw_photos(15, first=60))
        for file in data.iterdir():
            s3.upload_file(str(file), "bins", f"datasets/squares/{file.name}")
        weights = save_weights(ARCH, folder / "weights")
        s3.upload_file(str(weights), "bins", f"weights/{ARCH}.pth")
        code = pack_code(ON_SAGEMAKER, files_for_the_container())
        s3.put_object(Bucket="bins", Key=f"runs/{RUN}/code.tar.gz", Body=code)
        yield s3


@dataclass(frozen=True, kw_only=True)
class Left:
    """What a job left in the bucket."""

    model: Path
    output: Path
    log: str

    def weights(self) -> list[Any]:
        graph = onnx.load(self.model / "model.onnx").graph
        return [numpy_helper.to_array(tensor) for tensor in graph.initializer]


def trainer(**changes: Any) -> Any:
    usual: dict[str, Any] = {
        "run_id": RUN,
        "work": Work(
            dataset="squares",
            arch=ARCH,
            train_arguments=[],
            mode="head",
            ensemble_size=1,
            epochs=1,
        ),
        "instance_type": "ml.m5.large",
        "instances": 1,
        "volume_gib": 30,
        "spot": True,
        "max_seconds": 3600,
        "max_wait_seconds": 7200,
        "hyperparameters": SETTINGS,
    }
    return model_trainer(
        RunSession(boto3.Session(), "bins"), "arn:aws:iam::1:role/x", Job(**usual | changes)
    )


def request_of(trainer: Any, name: str) -> dict[str, Any]:
    """What CreateTrainingJob would be sent, the drivers uploaded; the job is called `name`."""
    arguments: dict[str, Any] = trainer._create_training_job_args(boto3=True)
    checkpoints = {"S3Uri": f"s3://bins/checkpoints/{name}/"}  # each test its own
    return {**arguments, "TrainingJobName": name, "CheckpointConfig": checkpoints}


def run(job: TrainingJob, s3: Any, name: str, folder: Path) -> Left:
    job.run()
    return collect(job, s3, name, folder)


def collect(job: TrainingJob, s3: Any, name: str, folder: Path) -> Left:
    for part in ("model", "output"):
        archive = folder / f"{part}.tar.gz"
        s3.download_file("bins", f"runs/{RUN}/{name}/output/{archive.name}", str(archive))
        with tarfile.open(archive) as tar:
            tar.extractall(folder / part, filter="data")
    log = "\n".join(file.read_text() for file in job.logs)
    return Left(model=folder / "model", output=folder / "output", log=log)


@pytest.fixture(scope="module")
def peaceful(s3: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainingJob, Left]:
    """A job on one host that nobody disturbed."""
    folder = tmp_path_factory.mktemp("peaceful")
    job = TrainingJob(request_of(trainer(), "peaceful"), work=folder / "job", s3=s3)
    return job, run(job, s3, "peaceful", folder)


def test_the_drivers_train_and_leave_model_report_and_metrics(
    peaceful: tuple[TrainingJob, Left],
) -> None:
    _, left = peaceful
    assert {file.name for file in left.output.iterdir()} >= {
        "events",
        "loss.png",
        "metrics.json",
        "metrics.jsonl",
        "report.html",
        "weights.pth",
    }
    assert json.loads((left.model / "model.json").read_text())["run_id"] == RUN
    assert "Running Basic Script driver" in left.log
    assert "Installing requirements" in left.log
    assert "step/s" not in left.log, "CloudWatch keeps lines, not progress bars"


def test_the_metric_definitions_find_in_the_real_log_what_metrics_jsonl_says(
    peaceful: tuple[TrainingJob, Left],
) -> None:
    job, left = peaceful
    history = timeless_history(left.output)
    found = job.metrics()
    assert found["train:loss"] == history[-1]["train_loss"]
    assert found["validation:loss"] == history[-1]["validation_loss"]
    assert found["validation:accuracy"] == history[-1]["validation_accuracy"]
    assert found[OBJECTIVE] == min(line["validation_loss"] for line in history)
    assert found["train:photos_per_second"] > 0


def test_an_interrupted_job_ends_in_the_weights_of_one_in_peace(
    s3: Any,
    peaceful: tuple[TrainingJob, Left],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.2)
    request = request_of(trainer(), "interrupted")
    job = TrainingJob(request, work=tmp_path / "job", s3=s3, interrupt_after=2)
    left = run(job, s3, "interrupted", tmp_path)
    assert len(job.logs) == 2
    assert "resuming after epoch" in job.logs[1].read_text()
    assert job.away_seconds > 0
    _, other = peaceful
    for one, expected in zip(left.weights(), other.weights(), strict=True):
        np.testing.assert_array_equal(one, expected)
    assert timeless_history(left.output) == timeless_history(other.output)


TOGETHER = SETTINGS | {"mode": "finetune", "epochs": 2, "batch_size": 8, "profile": True}


@pytest.mark.slow
def test_two_hosts_that_are_interrupted_go_on_where_they_were(s3: Any, tmp_path: Path) -> None:
    lefts = []
    for name, interrupt_after in (("two-peaceful", None), ("two-interrupted", 1)):
        request = request_of(trainer(instances=2, hyperparameters=TOGETHER), name)
        job = TrainingJob(request, work=tmp_path / name, s3=s3, interrupt_after=interrupt_after)
        lefts.append(run(job, s3, name, tmp_path / name))
    assert len(job.logs) == 2
    assert "resuming after epoch" in job.logs[1].read_text()
    peaceful, interrupted = lefts
    assert timeless_history(interrupted.output) == timeless_history(peaceful.output)
    for one, expected in zip(interrupted.weights(), peaceful.weights(), strict=True):
        np.testing.assert_array_equal(one, expected)


@pytest.mark.slow  # the notebook trains on two hosts each time
def test_two_hosts_train_one_model_together(s3: Any, tmp_path: Path) -> None:
    request = request_of(trainer(instances=2, hyperparameters=TOGETHER), "two")
    job = TrainingJob(request, work=tmp_path / "job", s3=s3)
    left = run(job, s3, "two", tmp_path)
    assert "Running Torchrun Driver" in left.log
    first, second = (
        (tmp_path / f"job/start-1/algo-{number}/output.log").read_text() for number in (1, 2)
    )
    for rank, log in enumerate((first, second)):
        assert "--nnodes=2 --nproc_per_node=1" in log
        assert f"--node_rank={rank}" in log
    assert "epoch 2: train_loss=" in first
    assert "epoch 2: train_loss=" not in second, "the first writes for all"
    # 54 photos for training, 8 a process: 3 steps with all of them, and no photo twice.
    assert [line["step"] for line in timeless_history(left.output)] == [3, 6]
    assert (left.output / "profile.txt").exists()
    assert (left.model / "model.onnx").exists()
    assert "torchrun" in (left.output / "report.html").read_text()


def test_code_that_fails_fails_the_job_with_its_last_words(s3: Any, tmp_path: Path) -> None:
    settings = SETTINGS | {"learning_rate": -1}
    job = TrainingJob(
        request_of(trainer(hyperparameters=settings), "wrong"), work=tmp_path / "job", s3=s3
    )
    with pytest.raises(JobFailedError, match=r"exit code: [12]$"):
        job.run()
    assert "for --learning-rate. Must be > 0." in job.logs[0].read_text()


def test_a_job_that_is_asked_to_stops_and_leaves_nothing_running(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = TrainingJob(request_of(trainer(), "stopped"), work=tmp_path / "job", s3=s3)
    running: list[psutil.Process] = []

    def stop_once_it_runs(hosts: list[Host]) -> bool:
        running[:] = psutil.Process(hosts[0].process.pid).children(recursive=True)
        if running:
            job.stop()
        return False

    monkeypatch.setattr(job, "_interruption_due", stop_once_it_runs)
    with pytest.raises(JobStoppedError):
        job.run()
    assert not [process for process in running if process.is_running()]


def test_a_trial_of_a_search_is_started_by_the_toolkit(s3: Any, tmp_path: Path) -> None:
    base = trainer()
    search = tuner(base, "head", trials=1, parallel=1, max_seconds=600, seed=1)
    base.sagemaker_session = RunSession(boto3.Session(), "bins", dry=True)
    with pytest.raises(DryRunError) as caught:
        search.tune(inputs=base.input_data_config, job_name="bin-counter-1", wait=False)
    definition = caught.value.request["TrainingJobDefinition"]
    tuned = {"epochs": "3", "learning_rate": "0.001", "batch_size": "16"}
    asked = {"_tuning_objective_metric": OBJECTIVE, "skip_test": "True", **tuned}
    request = {
        **definition,
        "TrainingJobName": "bin-counter-1-001",
        "HyperParameters": definition["StaticHyperParameters"] | asked,
        "CheckpointConfig": {"S3Uri": "s3://bins/checkpoints/trial/"},
    }
    request["InputDataConfig"] = [
        each for each in request["InputDataConfig"] if each["ChannelName"] != "sm_drivers"
    ]
    job = TrainingJob(request, work=tmp_path / "job", s3=s3)
    left = run(job, s3, "bin-counter-1-001", tmp_path)
    assert len(timeless_history(left.output)) == 3
    assert job.metrics()[OBJECTIVE] > 0
    assert "test" not in json.loads((left.output / "metrics.json").read_text())
