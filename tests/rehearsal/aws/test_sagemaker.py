"""What the stand-in for AWS does in the name of SageMaker, with a tiny script."""

import io
import os
import random
import signal
import tarfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import psutil
import pytest
from moto.sagemaker.responses import SageMakerResponse
from moto.server import ThreadedMotoServer
from moto.sts.models import sts_backends
from sagemaker.core.parameter import CategoricalParameter, ContinuousParameter, IntegerParameter
from sagemaker.train.tuner import HyperparameterTuner

from common.run_record import Work
from rehearsal.aws import training_job as module
from rehearsal.aws.processes import Processes
from rehearsal.aws.sagemaker import run_jobs
from rehearsal.aws.search import RunningSearch, _draw
from rehearsal.aws.stand_in import StandIn
from rehearsal.aws.training_job import TrainingJob
from training.learn.metric_line import OBJECTIVE, metric_definitions
from training.sagemaker.request import Job, RunSession, model_trainer

SEARCH = "bin-counter-1"
ROLE = "arn:aws:iam::123456789012:role/training"
# Three steps; each leaves a checkpoint and a line, as training.train does.
ENTRY = """
import json, os, sys, time
from pathlib import Path
hyperparameters = json.loads(os.environ["SM_HPS"])
if "fail" in hyperparameters:
    sys.exit("told to fail")
output, model = Path(os.environ["SM_OUTPUT_DATA_DIR"]), Path(os.environ["SM_MODEL_DIR"])
rank = os.environ.get("SM_CURRENT_HOST_RANK")
print(f"host {rank} of {os.environ['SM_HOSTS']}", flush=True)
checkpoint = model.with_name("checkpoints") / os.environ["TRAINING_JOB_NAME"]
step = int(checkpoint.read_text()) if checkpoint.exists() else 0
print(f"from step {step}", flush=True)
while step < 3:
    time.sleep(hyperparameters.get("pause", 0))
    step += 1
    checkpoint.write_text(str(step))
    with (output / "metrics.jsonl").open("a") as file:
        file.write("{}\\n")
    loss = hyperparameters.get("loss", 1)
    print(f"epoch {step}: train_loss={loss / step} best_validation_loss={loss}", flush=True)
words = Path(os.environ["SM_CHANNEL_DATA"], "deep", "words.txt").read_text()
(model / f"words-{rank}.txt").write_text(words)
"""


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    usual = dict(vars(SageMakerResponse))
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.1)
    urllib.request.urlopen(f"{url}/moto-api/reset", data=b"").close()
    fill_bucket()
    run_jobs(url, tmp_path / "jobs")
    yield url
    server.stop()
    for name in set(vars(SageMakerResponse)) - set(usual):
        delattr(SageMakerResponse, name)
    for name, method in usual.items():
        if vars(SageMakerResponse)[name] is not method:
            setattr(SageMakerResponse, name, method)


def fill_bucket() -> None:
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket="bins")
    s3.put_object(Bucket="bins", Key="datasets/words/deep/words.txt", Body=b"hello")
    s3.put_object(Bucket="bins", Key="weights/resnet50.pth", Body=b"weights")
    s3.put_object(Bucket="bins", Key="runs/run/code.tar.gz", Body=packed_code())


def packed_code() -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, text in {"entry.py": ENTRY, "requirements.txt": "psutil\n"}.items():
            file = tarfile.TarInfo(name)
            file.size = len(text)
            tar.addfile(file, io.BytesIO(text.encode()))
    return archive.getvalue()


def trainer(instances: int = 1, *, torchrun: bool = True, **hyperparameters: Any) -> Any:
    job = Job(
        run_id="run",
        work=Work(
            dataset="words",
            arch="resnet50",
            train_arguments=[],
            mode="head",
            ensemble_size=1,
            epochs=1,
        ),
        instance_type="ml.m5.large",
        instances=instances,
        volume_gib=30,
        spot=False,
        max_seconds=3600,
        max_wait_seconds=3600,
        hyperparameters=hyperparameters,
    )
    made = model_trainer(RunSession(boto3.Session(), "bins"), ROLE, job)
    if not torchrun:
        made.distributed = None
    return made


def start(made: Any) -> str:
    made.train(wait=False)
    name: str = made._latest_training_job.training_job_name
    return name


def described(name: str) -> dict[str, Any]:
    job: Any = boto3.client("sagemaker").describe_training_job(TrainingJobName=name)
    return dict(job)


def ended(describe: Callable[[], dict[str, Any]], key: str) -> dict[str, Any]:
    end = time.monotonic() + 600
    while (found := describe())[key] not in {"Completed", "Failed", "Stopped"}:
        assert time.monotonic() < end, found
        time.sleep(0.1)
    return found


def ended_job(name: str) -> dict[str, Any]:
    return ended(lambda: described(name), "TrainingJobStatus")


def wait_for_log(folder: Path, text: str, hosts: int = 1) -> None:
    end = time.monotonic() + 600
    while sum(text in file.read_text() for file in folder.rglob("output.log")) < hosts:
        assert time.monotonic() < end
        time.sleep(0.1)


def unpacked(uri: str, folder: Path) -> dict[str, str]:
    """Contents of an archive in the bucket, by name."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    archive = folder / "archive.tar.gz"
    boto3.client("s3").download_file(bucket, key, str(archive))
    with tarfile.open(archive) as tar:
        tar.extractall(folder / "unpacked", filter="data")
    return {file.name: file.read_text() for file in (folder / "unpacked").iterdir()}


def running(folder: Path) -> list[str]:
    """Processes of a job in `folder`: each has it in its environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and str(folder) in str(process.environ()):
                found.append(" ".join(process.cmdline()))
        except psutil.Error:  # ended in the meantime, or somebody else's
            continue
    return found


def test_a_job_gets_its_data_and_role_and_leaves_model_output_and_metrics(
    endpoint: str, tmp_path: Path
) -> None:
    job = ended_job(start(trainer(loss=0.5)))
    assert (job["TrainingJobStatus"], job["SecondaryStatus"]) == ("Completed", "Completed")
    sessions = sts_backends["123456789012"]["aws"].assumed_roles
    assert [session.role_arn for session in sessions] == [ROLE]
    model = job["ModelArtifacts"]["S3ModelArtifacts"]
    assert unpacked(model, tmp_path)["words-0.txt"] == "hello"
    output = model.replace("model.tar.gz", "output.tar.gz")
    assert unpacked(output, tmp_path)["metrics.jsonl"] == "{}\n" * 3
    metrics = {each["MetricName"]: each["Value"] for each in job["FinalMetricDataList"]}
    assert metrics == {"train:loss": pytest.approx(0.5 / 3), OBJECTIVE: 0.5}
    assert job["AlgorithmSpecification"]["MetricDefinitions"] == metric_definitions()
    assert job["TrainingStartTime"] < job["TrainingEndTime"]
    assert 0 < job["BillableTimeInSeconds"] <= job["TrainingTimeInSeconds"]
    assert not running(tmp_path)
    (log,) = tmp_path.rglob("output.log")
    assert f"TRAINING_JOB_ARN={job['TrainingJobArn']}" in log.read_text()
    assert "AWS_REGION=us-east-1" in log.read_text()


def test_two_hosts_know_each_other_and_leave_one_model(endpoint: str, tmp_path: Path) -> None:
    job = ended_job(start(trainer(2, torchrun=False)))
    for rank in (0, 1):
        (log,) = tmp_path.rglob(f"algo-{rank + 1}/output.log")
        assert f'host {rank} of ["algo-1", "algo-2"]' in log.read_text()
    left = unpacked(job["ModelArtifacts"]["S3ModelArtifacts"], tmp_path)
    assert left == {"words-0.txt": "hello", "words-1.txt": "hello"}


def test_an_interrupted_job_goes_on_from_its_checkpoint(endpoint: str, tmp_path: Path) -> None:
    request = trainer(pause=0.5)._create_training_job_args(boto3=True)
    job = TrainingJob(
        {**request, "TrainingJobName": "job"},
        work=tmp_path / "job",
        s3=boto3.client("s3"),
        interrupt_after=1,
    )
    job.run()
    first, second = (log.read_text() for log in job.logs)
    assert "from step 0" in first
    assert "epoch 3" not in first
    assert "from step 1" in second
    assert "epoch 3" in second
    assert job.away_seconds > 0
    output = f"{request['OutputDataConfig']['S3OutputPath']}/job/output/output.tar.gz"
    assert unpacked(output, tmp_path)["metrics.jsonl"] == "{}\n" * 2, "the first machine's is gone"


def test_a_script_that_fails_fails_its_job(endpoint: str, tmp_path: Path) -> None:
    job = ended_job(start(trainer(fail=1)))
    assert (job["TrainingJobStatus"], job["SecondaryStatus"]) == ("Failed", "Failed")
    assert "entry.py" in job["FailureReason"]
    assert job["FailureReason"].endswith("exit code: 1")
    (log,) = tmp_path.rglob("output.log")
    assert "told to fail" in log.read_text()


def test_a_job_that_is_asked_to_stops(endpoint: str, tmp_path: Path) -> None:
    name = start(trainer(pause=60))
    wait_for_log(tmp_path, "from step")
    boto3.client("sagemaker").stop_training_job(TrainingJobName=name)
    job = ended_job(name)
    assert (job["TrainingJobStatus"], job["SecondaryStatus"]) == ("Stopped", "Stopped")
    assert not running(tmp_path)


def test_a_job_has_no_end_before_it_ends_and_stops_only_until_then(
    endpoint: str, tmp_path: Path
) -> None:
    name = start(trainer(pause=1))
    wait_for_log(tmp_path, "from step")
    job = described(name)
    assert (job["TrainingJobStatus"], job["SecondaryStatus"]) == ("InProgress", "Training")
    assert "TrainingEndTime" not in job
    over = ended_job(name)
    steps = [step["Status"] for step in over["SecondaryStatusTransitions"]]
    assert steps == ["Starting", "Training", "Completed"]
    boto3.client("sagemaker").stop_training_job(TrainingJobName=name)
    assert described(name)["TrainingJobStatus"] == "Completed"


@pytest.mark.slow
def test_nothing_of_torchrun_outlives_its_job(endpoint: str, tmp_path: Path) -> None:
    name = start(trainer(2, pause=60))
    wait_for_log(tmp_path, "from step", hosts=2)
    boto3.client("sagemaker").stop_training_job(TrainingJobName=name)
    ended_job(name)
    assert not running(tmp_path)


@pytest.mark.slow
def test_nothing_outlives_a_server_that_is_ended(
    endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("bins", "work"):
        (tmp_path / folder).mkdir()
    with Processes(tmp_path / "state") as processes:
        stand_in = StandIn(processes, tmp_path / "work")
        stand_in.start(tmp_path / "bins")
        monkeypatch.setenv("AWS_ENDPOINT_URL", stand_in.endpoint)
        fill_bucket()
        start(trainer(2, pause=60))
        wait_for_log(stand_in.jobs, "from step", hosts=2)
        (server,) = processes._started
        os.kill(server.pid, signal.SIGTERM)  # to it alone, not to its session
        server.wait()
        assert not running(stand_in.jobs)


def search() -> dict[str, Any]:
    """Two trials, over."""
    base = trainer()
    base.base_job_name = base.input_s3_key_prefix
    tuner = HyperparameterTuner(
        base,
        objective_metric_name=OBJECTIVE,
        objective_type="Minimize",
        hyperparameter_ranges={
            "loss": ContinuousParameter(1e-3, 1.0, "Logarithmic"),
            "units": IntegerParameter(8, 64),
            "kind": CategoricalParameter(["a", "b"]),
        },
        metric_definitions=metric_definitions(),
        max_jobs=2,
        max_parallel_jobs=1,
        random_seed=1,
    )
    tuner.tune(inputs=base.input_data_config, job_name=SEARCH, wait=False)
    client: Any = boto3.client("sagemaker")
    return ended(
        lambda: client.describe_hyper_parameter_tuning_job(HyperParameterTuningJobName=SEARCH),
        "HyperParameterTuningJobStatus",
    )


def trials() -> list[Any]:
    client: Any = boto3.client("sagemaker")
    found: list[Any] = client.list_training_jobs_for_hyper_parameter_tuning_job(
        HyperParameterTuningJobName=SEARCH
    )["TrainingJobSummaries"]
    return found


def objective(trial: dict[str, Any]) -> float:
    value: float = trial["FinalHyperParameterTuningJobObjectiveMetric"]["Value"]
    return value


def test_a_search_runs_its_trials_and_names_the_best(endpoint: str, tmp_path: Path) -> None:
    over = search()
    assert over["HyperParameterTuningJobStatus"] == "Completed"
    assert over["TrainingJobStatusCounters"]["Completed"] == 2
    found = trials()
    for number, trial in enumerate(found, start=1):
        assert trial["TrainingJobName"].startswith(f"{SEARCH}-{number:03d}-")
        tuned = trial["TunedHyperParameters"]
        assert objective(trial) == float(tuned["loss"])
        assert 8 <= int(tuned["units"]) <= 64
        assert tuned["kind"] in {"a", "b"}
        given = described(trial["TrainingJobName"])["HyperParameters"]
        assert given | tuned == given
    best = min(found, key=objective)
    assert over["BestTrainingJob"]["TrainingJobName"] == best["TrainingJobName"]
    assert not running(tmp_path)


def test_a_search_whose_trials_cannot_start_fails(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Any, *_: Any) -> None:
        raise PermissionError("no trial for you")

    monkeypatch.setattr(RunningSearch, "_run_trial", refuse)
    over = search()
    assert over["HyperParameterTuningJobStatus"] == "Failed"
    assert "no trial for you" in over["FailureReason"]


def test_whole_numbers_are_drawn_by_their_scale() -> None:
    range_ = {"Name": "units", "MinValue": "1", "MaxValue": "1000", "ScalingType": "Logarithmic"}
    generator = random.Random(0)
    drawn = [
        int(_draw({"IntegerParameterRanges": [range_]}, generator)["units"]) for _ in range(1000)
    ]
    assert 1 <= min(drawn) <= max(drawn) <= 1000
    assert 400 < sum(value <= 31 for value in drawn) < 600, "half of them up to the middle"
