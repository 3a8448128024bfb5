"""What `training.sagemaker` does in an account: checks, starts, follows, takes up, ends."""

import io
import json
import re
import tarfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from sagemaker.core.config.config_manager import SageMakerConfig

from common.chosen_model import chosen_model, run_of
from common.run_record import OUTPUTS, RunRecord
from serving.container.cores import available_cores
from tests.support import training_account
from tests.support.training_account import EARLIER, Account, Clock
from training import launch
from training.flags import as_flags, parse
from training.launcher.deployment import Deployment, LaunchError
from training.learn.metric_line import OBJECTIVE
from training.sagemaker import run as sagemaker_run
from training.sagemaker import search as sagemaker_search
from training.sagemaker.__main__ import app
from training.sagemaker.environment import sagemaker_defaults
from training.search.space import SPACES
from training.settings import Choices, Options

account = training_account.account
EARLY = datetime(2026, 1, 1, tzinfo=UTC)
QUOTAS = {
    "ml.m5.large for spot training job usage": 4.0,
    "ml.m5.large for training job usage": 0.0,
}


@pytest.fixture(autouse=True)
def sagemaker_account(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    """The account's TrainStack has a role for jobs, and SageMaker has quotas there."""
    cloudformation = boto3.client("cloudformation")
    outputs = {
        "LauncherRoleArn": training_account.ROLE,
        "GroupNames": training_account.GROUP,
        "ModelParameterName": "/model",
        "TrainingJobRoleArn": "arn:aws:iam::123456789012:role/job",
    }
    template = {
        "Resources": {"Any": {"Type": "AWS::SNS::Topic"}},
        "Outputs": {name: {"Value": value} for name, value in outputs.items()},
    }
    cloudformation.update_stack(
        StackName="bin-counter-TrainStack", TemplateBody=json.dumps(template)
    )
    quotas = [
        {"QuotaName": name, "QuotaCode": f"L-{number}", "Value": value}
        for number, (name, value) in enumerate(QUOTAS.items())
    ]
    account.answers["ListServiceQuotas"] = {"Quotas": quotas}
    # The SDK checks its schema, and its empty settings against it, for each of them: half the time.
    unchecked = staticmethod(lambda _=None: None)
    monkeypatch.setattr(SageMakerConfig, "validate_sagemaker_config", unchecked)
    clock = Clock()
    for module in (sagemaker_run, sagemaker_search):
        monkeypatch.setattr(module, "time", clock)


def run(*words: str) -> bool:
    """`python -m training.sagemaker` with these words; errors are raised."""
    succeeded: bool = app(list(words))
    return succeeded


def train(*flags: str) -> bool:
    dataset = () if "--dataset" in flags else ("--dataset", "photos")
    return run("train", *dataset, "--yes", *flags)


def job_of(record: RunRecord) -> str:
    """Name of a run's training job."""
    return record.status()["attempts"][-1]["instance_id"]


def job(record: RunRecord, status: str = "Completed", **more: Any) -> dict[str, Any]:
    """How SageMaker describes the job of a run: 10 minutes of training, 3 of them paid for."""
    started = datetime.now(UTC) - timedelta(minutes=10)
    model = record.uri(f"{job_of(record)}/output/model.tar.gz")
    return {
        "TrainingJobStatus": status,
        "SecondaryStatus": status,
        "CreationTime": started - timedelta(minutes=2),
        "LastModifiedTime": started + timedelta(minutes=10),
        "TrainingStartTime": started,
        "TrainingEndTime": started + timedelta(minutes=10),
        "TrainingTimeInSeconds": 600,
        "BillableTimeInSeconds": 180,
        "ResourceConfig": {"VolumeSizeInGB": 30},
        "ModelArtifacts": {"S3ModelArtifacts": model},
        **more,
    }


def leave_results(account: Account, record: RunRecord) -> None:
    """What training.train and SageMaker leave of a job that succeeded."""
    archive = io.BytesIO()
    content = dict.fromkeys(OUTPUTS, b"{}")
    content["metrics.json"] = json.dumps({"test": {"accuracy": {"value": 0.4}}}).encode()
    content["profile.txt"] = b"aten::conv2d"
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, body in content.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(body)
            tar.addfile(entry, io.BytesIO(body))
    key = record.key(f"{job_of(record)}/output/output.tar.gz")
    account.s3.put_object(Bucket="bins", Key=key, Body=archive.getvalue())


def test_a_run_is_recorded_with_its_job_as_a_spot_machines_is(account: Account) -> None:
    assert train("--instances", "2", "--", "--epochs", "7")
    record = account.record()
    request, status = record.request(), record.status()
    assert request["service"] == "sagemaker"
    assert (request["epochs"], request["train_arguments"]) == (7, ["--epochs=7"])
    assert status["state"] == "running"
    (attempt,) = status["attempts"]
    assert (attempt["instance_type"], attempt["machines"]) == ("ml.m5.large", 2)
    assert attempt["purchase"] == "spot"
    found: Any = boto3.client("sagemaker").describe_training_job(
        TrainingJobName=attempt["instance_id"]
    )
    assert found["HyperParameters"]["epochs"] == "7"
    assert found["RoleArn"] == "arn:aws:iam::123456789012:role/job"


@pytest.mark.parametrize(
    "words",
    [
        ["--mode", "finetune", "--epochs", "20", "--batch-size", "256"],  # what head mode has
        ["--epochs", "5", "--hidden", "0", "--ema-decay", "0.998"],  # what finetune has
        ["--mode", "finetune", "--threads", f"{available_cores()}"],  # what this machine has
        [],
    ],
)
def test_the_container_trains_with_what_was_asked_for_here(
    account: Account, words: list[str]
) -> None:
    train("--", *words)
    described: Any = boto3.client("sagemaker").describe_training_job(
        TrainingJobName=job_of(account.record())
    )
    asked = parse(Choices, words)
    environment = {"SM_MODEL_DIR": "/m", "SM_HPS": json.dumps(described["HyperParameters"])}
    places = ["--data=d", "--weights=w", "--output=o"]
    there = parse(Options, [*places, *as_flags(sagemaker_defaults(environment))])
    assert (there.settings, there.extras) == (asked.settings, asked.extras)
    assert there.machine.threads == asked.machine.threads
    assert account.record().request()["epochs"] == there.settings.epochs


def test_time_and_cost_are_stated_before_the_question(
    account: Account, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("builtins.input", lambda _: "n")
    with pytest.raises(LaunchError, match="not started"):
        run("train", "--dataset", "photos", "--instances", "2")
    said = capsys.readouterr().out
    assert re.search(r"run \d{8}-\d{6}-resnet50-\w{4}: about \d+ min and \$0\.\d+ on 2 × ml", said)
    assert "ml.m5.large, before the savings of managed spot training; ended by force" in said
    assert "after 3 h 00 min of training" in said
    assert "4 of ml.m5.large for spot training job usage, 2 needed" in said
    assert account.run_ids() == set()


def test_a_quota_that_does_not_suffice_prints_the_command_that_asks_for_more(
    account: Account, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(LaunchError, match="not started, see above: quota"):
        train("--on-demand", "--instances", "2")
    assert (
        "run `aws service-quotas request-service-quota-increase --service-code sagemaker "
        "--quota-code L-1 --desired-value 2`"
    ) in capsys.readouterr().out
    assert account.run_ids() == set()


def test_a_search_takes_as_long_as_its_trials_in_turn_and_costs_as_much_as_all(
    capsys: pytest.CaptureFixture[str],
) -> None:
    run("search", "--dataset", "photos", "--yes", "--trials", "4", "--parallel", "2")
    run("train", "--dataset", "photos", "--yes", "--", "--epochs", "22")  # the middle of 5 to 40
    said = re.findall(r"about (\d+) min and \$([0-9.]+)", capsys.readouterr().out)
    (minutes, dollars), (one, each) = [(int(m), float(d)) for m, d in said]
    assert minutes == pytest.approx(2 * one, abs=1)
    assert dollars == pytest.approx(4 * each, abs=0.003)


def test_where_no_rate_was_measured_the_longest_time_is_stated(
    account: Account, capsys: pytest.CaptureFixture[str]
) -> None:
    quota = {"QuotaName": "ml.g5.xlarge for spot training job usage", "QuotaCode": "L-9"}
    account.answers["ListServiceQuotas"] = {"Quotas": [quota | {"Value": 2.0}]}
    words = ["--dataset", "photos", "--yes", "--instance-type", "ml.g5.xlarge"]
    assert run("search", *words, "--parallel", "2", "--max-hours", "1.5")
    said = capsys.readouterr().out
    assert "about 1 h 30 min and $4.224 on" in said, "3 hours of ml.g5.xlarge"
    assert "the time limit, as no rate has been measured" in said


def test_a_search_ends_as_a_whole_after_max_hours(account: Account) -> None:
    assert run("search", "--dataset", "photos", "--yes", "--max-hours", "1.5")
    (search,) = boto3.client("sagemaker").list_hyper_parameter_tuning_jobs()[
        "HyperParameterTuningJobSummaries"
    ]
    assert search["ResourceLimits"]["MaxRuntimeInSeconds"] == 5400


def test_what_is_searched_for_cannot_be_fixed(account: Account) -> None:
    with pytest.raises(LaunchError, match="--epochs, --learning-rate: set by the search"):
        run("search", "--", "--epochs", "20", "--learning-rate", "1e-3")
    assert run(
        *("search", "--dataset", "photos", "--yes", "--"), *("--mode", "finetune", "--hidden", "64")
    )


def test_training_that_does_not_fit_the_machines_memory_is_not_started(
    account: Account, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(LaunchError, match="not started, see above: memory"):
        train("--", "--mode", "finetune", "--ensemble-size", "4")
    said = "--mode finetune needs 12.9 GiB, ml.m5.large has 8: choose a larger --instance-type"
    assert said in capsys.readouterr().out
    assert "CreateTrainingJob" not in account.order("CreateTrainingJob")
    train("--", "--mode", "finetune")
    assert "memory    8 GiB, 5.1 needed" in capsys.readouterr().out


def test_parallel_trials_count_for_the_quota(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(LaunchError, match="quota"):
        run("search", "--dataset", "photos", "--yes", "--parallel", "5")
    assert "--desired-value 5" in capsys.readouterr().out


def test_a_quota_that_cannot_be_found_is_no_obstacle(
    account: Account, capsys: pytest.CaptureFixture[str]
) -> None:
    account.answers["ListServiceQuotas"] = {"Quotas": []}
    assert train()
    assert "there is no quota ml.m5.large for spot" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--dataset", "nothing"], "data set"),
        (["--arch", "efficientnet_lite0"], "weights"),
    ],
)
def test_what_is_missing_is_named_and_nothing_starts(
    account: Account, flags: list[str], named: str
) -> None:
    with pytest.raises(LaunchError, match=f"not started, see above: {named}"):
        train(*flags)
    assert account.run_ids() == set()


def test_a_type_without_a_price_names_those_with_one() -> None:
    with pytest.raises(LaunchError, match=r"ml.x9.huge.*--instance-type"):
        train("--instance-type", "ml.x9.huge")


def test_a_wait_shorter_than_the_training_is_refused() -> None:
    with pytest.raises(LaunchError, match="includes the training"):
        train("--max-hours", "3", "--max-wait-hours", "2")


@pytest.mark.parametrize(
    ("command", "operation"),
    [("train", "TrainingJobName"), ("search", "HyperParameterTuningJobName")],
)
def test_a_dry_run_prints_the_request_alone_and_changes_nothing(
    account: Account, capsys: pytest.CaptureFixture[str], command: str, operation: str
) -> None:
    before = account.order("PutObject", "PutParameter")
    assert run(command, "--dataset", "photos", "--dry-run")
    printed = capsys.readouterr()
    assert json.loads(printed.out)[operation].startswith("bin-counter-")
    assert "4 of ml.m5.large for spot training job usage" in printed.err
    assert account.run_ids() == set()
    assert not account.order("PutObject", "PutParameter")[len(before) :]
    assert not boto3.client("sagemaker").list_training_jobs()["TrainingJobSummaries"]


def test_a_dry_run_prints_the_request_even_when_the_quota_says_no(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(LaunchError, match="quota"):
        train("--dry-run", "--on-demand")
    assert "ResourceConfig" in json.loads(capsys.readouterr().out)


REFUSED = ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, "CreateTrainingJob")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), REFUSED], ids=["broken off", "refused"])
def test_a_job_that_is_not_made_leaves_a_failed_run(account: Account, error: BaseException) -> None:
    account.answers["CreateTrainingJob"] = error
    with pytest.raises(type(error)):
        train()
    status = account.record().status()
    assert (status["state"], status["message"]) == ("failed", "could not be started")
    with pytest.raises(LaunchError, match="nothing to stop"):
        run("stop")


def test_a_job_that_is_made_is_in_its_runs_record_though_the_answer_was_lost(
    account: Account, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = iter([ConnectionError("gone"), None])  # the SDK asks once it has started a job
    account.answers["DescribeTrainingJob"] = lambda _: answer(next(lost, None))
    with pytest.raises(ConnectionError):
        train()
    record = account.record()
    assert record.status()["state"] == "running"
    assert f"`python -m training.sagemaker stop {record.run_id}`" in capsys.readouterr().err
    account.answers["StopTrainingJob"] = {}
    run("stop")


def answer(given: Any) -> Any:
    if isinstance(given, BaseException):
        raise given
    return given


def test_a_run_whose_job_never_was_is_told_so(
    account: Account, capsys: pytest.CaptureFixture[str]
) -> None:
    train()
    absent = {"Error": {"Code": "ValidationException", "Message": "Requested resource not found."}}
    account.answers["DescribeTrainingJob"] = ClientError(absent, "DescribeTrainingJob")
    assert not run("follow")
    assert account.record().status()["state"] == "failed"
    assert "could not be started" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("chosen", "served"),
    [("s3://bins/runs/later/model.tar.gz", "later"), ("none: no model", None)],
)
def test_a_model_chosen_after_the_job_ended_stays(
    account: Account, capsys: pytest.CaptureFixture[str], chosen: str, served: str | None
) -> None:
    train()
    record = account.record()
    leave_results(account, record)
    account.answers["DescribeTrainingJob"] = job(record, TrainingEndTime=EARLY)
    ssm = boto3.client("ssm")
    ssm.put_parameter(Name="/model", Value=chosen, Overwrite=True)
    assert run("follow")
    assert run_of(chosen_model()) == (served or record.run_id)
    said = capsys.readouterr().out
    assert (f"`python -m serving.models use {record.run_id}`" in said) == bool(served)


def test_a_run_that_ends_is_taken_up_with_results_costs_and_model(
    account: Account, capsys: pytest.CaptureFixture[str]
) -> None:
    train("--instances", "2")
    record = account.record()
    leave_results(account, record)
    account.answers["DescribeTrainingJob"] = job(record)
    assert run("follow")
    status = record.status()
    assert status["state"] == "succeeded"
    assert status["attempts"][0]["billed_seconds"] == 180
    assert record.judged()["accuracy"]["value"] == 0.4
    cost = json.loads(
        account.s3.get_object(Bucket="bins", Key=record.key("cost.json"))["Body"].read()
    )
    assert 0 < cost["dollars"] < 0.05
    assert run_of(chosen_model()) == record.run_id, "the endpoint's next deploy serves it"
    said = capsys.readouterr().out
    assert "2 × ml.m5.large, 10 min of training, 3 min billed" in said
    assert "40.0% exact" in said
    assert run("follow", record.run_id), "its end is remembered"


def test_taking_up_that_breaks_off_is_done_again(account: Account) -> None:
    train()
    record = account.record()
    leave_results(account, record)
    account.answers["DescribeTrainingJob"] = job(record)
    account.answers["PutParameter"] = ConnectionError("gone")
    with pytest.raises(ConnectionError):
        run("follow")
    assert record.status()["state"] == "running"
    del account.answers["PutParameter"]
    assert run("follow")
    assert run_of(chosen_model()) == record.run_id


def test_losses_are_shown_while_it_trains(
    account: Account, capsys: pytest.CaptureFixture[str]
) -> None:
    train()
    record = account.record()
    leave_results(account, record)
    names = {"train:loss": 1.25, "validation:loss": 1.5, "validation:accuracy": 0.314}
    metrics = [{"MetricName": name, "Value": value} for name, value in names.items()]
    going_on = job(record, "InProgress", FinalMetricDataList=metrics) | {
        "SecondaryStatus": "Training",
        "SecondaryStatusTransitions": [{"StatusMessage": "Training image download completed."}],
    }
    answers = iter([going_on, job(record)])
    account.answers["DescribeTrainingJob"] = lambda _: next(answers)
    assert run("follow")
    assert (
        "Training, Training image download completed.; loss 1.250, validation 1.500, 31.4% right"
    ) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("status", "secondary", "reason", "state", "message"),
    [
        ("Failed", "Failed", "AlgorithmError:\n exit 1", "failed", "AlgorithmError: exit 1"),
        ("Failed", "Failed", "", "failed", "SageMaker gave no reason"),
        ("Stopped", "Stopped", "", "stopped", "stopped by the user"),
        ("Stopped", "MaxWaitTimeExceeded", "", "failed", "MaxWaitTimeExceeded: run `python -m tr"),
    ],
)
def test_every_other_end_is_told_and_serves_no_model(
    account: Account, status: str, secondary: str, reason: str, state: str, message: str
) -> None:
    train()
    record = account.record()
    ended = job(record, status, SecondaryStatus=secondary, FailureReason=reason)
    account.answers["DescribeTrainingJob"] = ended
    assert not run("follow")
    assert record.status()["state"] == state
    assert record.status()["message"].startswith(message)
    parameter = boto3.client("ssm").get_parameter(Name="/model")["Parameter"]["Value"]
    assert parameter == "none: no model"


def test_a_run_of_an_older_version_is_not_resumed(account: Account) -> None:
    train()
    record = account.record()
    record.write("request.json", record.request() | {"version": 1})
    record.set_status("stopped", "", record.status()["attempts"])
    with pytest.raises(LaunchError, match="is from an older version of this code"):
        run("resume", record.run_id, "--yes")


def test_a_run_that_ran_out_of_time_goes_on_with_the_same_work_from_its_checkpoints(
    account: Account,
) -> None:
    train("--instances", "2", "--volume-gib", "50", "--", "--epochs", "7")
    record = account.record()
    first: Any = boto3.client("sagemaker").describe_training_job(TrainingJobName=job_of(record))
    account.answers["DescribeTrainingJob"] = job(
        record, "Stopped", SecondaryStatus="MaxRuntimeExceeded"
    )
    over = iter([account.answers["DescribeTrainingJob"]])  # then the new job, as it is
    account.answers["DescribeTrainingJob"] = lambda _: next(over, None)
    account.put(record.key("code.tar.gz"), "as it was")
    assert run("resume", record.run_id, "--yes", "--max-hours", "5")
    status = record.status()
    assert status["state"] == "running"
    earlier, attempt = status["attempts"]
    assert (earlier["billed_seconds"], attempt["machines"]) == (180, 2)
    second: Any = boto3.client("sagemaker").describe_training_job(TrainingJobName=job_of(record))
    assert second["TrainingJobName"] != first["TrainingJobName"]
    for same in ("HyperParameters", "CheckpointConfig", "ResourceConfig"):
        assert second[same] == first[same]
    assert second["StoppingCondition"]["MaxRuntimeInSeconds"] == 5 * 3600
    code = account.s3.get_object(Bucket="bins", Key=record.key("code.tar.gz"))["Body"].read()
    assert code == b"as it was"
    leave_results(account, record)
    account.answers["DescribeTrainingJob"] = job(record)
    assert run("follow")
    cost = json.loads(
        account.s3.get_object(Bucket="bins", Key=record.key("cost.json"))["Body"].read()
    )
    assert cost["seconds"] == 2 * 2 * 180, "both attempts on two machines"


def test_a_run_that_goes_on_or_succeeded_is_not_resumed(account: Account) -> None:
    train()
    record = account.record()
    for state in ("running", "succeeded"):
        if state == "succeeded":
            leave_results(account, record)
            account.answers["DescribeTrainingJob"] = job(record)
        else:
            account.answers["DescribeTrainingJob"] = job(record, "InProgress")
        with pytest.raises(LaunchError, match=f"is {state}: only a run that was stopped or has"):
            run("resume", record.run_id, "--yes")


def test_a_run_on_demand_is_resumed_on_demand(account: Account) -> None:
    quota = {"QuotaName": "ml.m5.large for training job usage", "QuotaCode": "L-1", "Value": 1.0}
    account.answers["ListServiceQuotas"] = {"Quotas": [quota]}
    train("--on-demand")
    record = account.record()
    over = iter([job(record, "Stopped")])
    account.answers["DescribeTrainingJob"] = lambda _: next(over, None)
    assert run("resume", record.run_id, "--yes")
    assert record.status()["attempts"][-1]["purchase"] == "on_demand"


def test_a_resume_that_is_refused_keeps_what_was_before(account: Account) -> None:
    train()
    record = account.record()
    account.answers["DescribeTrainingJob"] = job(record, "Failed")
    run("follow")
    account.answers["CreateTrainingJob"] = REFUSED
    with pytest.raises(ClientError):
        run("resume", record.run_id, "--yes")
    status = record.status()
    assert (status["state"], len(status["attempts"])) == ("failed", 1)
    assert status["attempts"][0]["billed_seconds"] == 180


def test_stop_asks_sagemaker_and_a_run_that_is_over_has_nothing_to_stop(account: Account) -> None:
    train()
    stopped: list[Any] = []
    account.answers["StopTrainingJob"] = lambda asked: stopped.append(asked) or {}
    run("stop")
    assert stopped == [{"TrainingJobName": job_of(account.record())}]
    account.record().set_status("stopped", "stopped by the user", [])
    with pytest.raises(LaunchError, match="nothing to stop"):
        run("stop")


def test_without_a_run_on_sagemaker_the_way_to_one_is_told(account: Account) -> None:
    account.add_run("succeeded")
    with pytest.raises(LaunchError, match=r"start one with `python -m training.sagemaker train`"):
        run("follow")
    with pytest.raises(LaunchError, match=f"no run {EARLIER['run_id']} on SageMaker"):
        run("follow", EARLIER["run_id"])


def test_launch_lists_and_shows_a_run_on_sagemaker_and_says_who_follows_it(
    account: Account, capsys: pytest.CaptureFixture[str]
) -> None:
    train()
    record = account.record()
    capsys.readouterr()
    launch.app(["status", record.run_id])
    assert f"training.sagemaker follow {record.run_id}" in capsys.readouterr().out
    launch.app(["list"])
    assert record.run_id in capsys.readouterr().out
    for words in (
        ["follow", record.run_id],
        ["resume", record.run_id, "--yes"],
        ["logs", record.run_id],
    ):
        with pytest.raises(LaunchError, match="SageMaker"):
            launch.app(words)


def test_a_run_on_sagemaker_does_not_keep_the_spot_machine_from_starting(account: Account) -> None:
    train()
    training_account.start()
    assert account.desired() == 1


def trial(number: int, value: float | None, status: str = "Completed") -> dict[str, Any]:
    """One of a search over the settings of head mode."""
    tuned = {"learning_rate": f"0.00{number}", "batch_size": "64"}
    tuned |= {
        name: str(getattr(values, "choices", (getattr(values, "low", 0),))[0])
        for name, values in SPACES["head"].items()
        if name not in tuned
    }
    found: dict[str, Any] = {
        "TrainingJobName": f"trial-{number}",
        "TrainingJobStatus": status,
        "TunedHyperParameters": tuned,
        "CreationTime": datetime(2026, 1, number, tzinfo=UTC),
    }
    if value is not None:
        metric = {"MetricName": OBJECTIVE, "Value": value}
        found["FinalHyperParameterTuningJobObjectiveMetric"] = metric
    return found


def end_search(account: Account, *trials: dict[str, Any]) -> str:
    """Start a search, and let it end with these trials; returns its name."""
    run("search", "--dataset", "photos", "--yes", "--trials", "3", "--", "--seed", "4")
    (search,) = boto3.client("sagemaker").list_hyper_parameter_tuning_jobs()[
        "HyperParameterTuningJobSummaries"
    ]
    name: str = search["HyperParameterTuningJobName"]
    static = {"arch": "resnet50", "seed": "4", "mode": "head", "sagemaker_program": "x.py"}
    account.answers |= {
        "DescribeHyperParameterTuningJob": {
            "HyperParameterTuningJobName": name,
            "HyperParameterTuningJobStatus": "Completed",
            "TrainingJobDefinition": {"StaticHyperParameters": static},
        },
        "ListTrainingJobsForHyperParameterTuningJob": {"TrainingJobSummaries": list(trials)},
        "DescribeTrainingJob": {"FinalMetricDataList": []},
    }
    return name


def test_the_best_trial_comes_back_as_the_file_that_train_and_launch_take(
    account: Account, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = end_search(account, trial(1, 1.5), trial(2, 1.2), trial(3, None, "Failed"))
    assert run("follow", name, "--output", str(tmp_path))
    best = json.loads((tmp_path / "best.json").read_text())
    assert (best["learning_rate"], best["arch"]) == (0.002, "resnet50")
    assert list((tmp_path / "plots").iterdir())
    with_them = ["--", "--settings", str(tmp_path / "best.json")]
    training_account.start(*with_them)
    del account.answers["DescribeTrainingJob"]
    train(*with_them)
    requests = [account.record(run_id).request() for run_id in Deployment.connect().run_ids()]
    spot, there = sorted(requests, key=lambda request: request.get("service", ""))
    assert there["service"] == "sagemaker"
    assert there["train_arguments"] == spot["train_arguments"]
    assert "--learning-rate=0.002" in there["train_arguments"]


def test_the_trials_of_a_search_are_counted_while_it_goes_on(
    account: Account, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = end_search(account, trial(1, 1.5))
    over = account.answers["DescribeHyperParameterTuningJob"]
    counters = {"Completed": 3, "InProgress": 2, "Stopped": 1}
    failed = {"RetryableError": 1, "NonRetryableError": 1}
    best = {"FinalHyperParameterTuningJobObjectiveMetric": {"Value": 1.23456}}
    going_on = over | {
        "HyperParameterTuningJobStatus": "InProgress",
        "TrainingJobStatusCounters": counters | failed,
        "BestTrainingJob": best,
    }
    answers = iter([going_on, over])
    account.answers["DescribeHyperParameterTuningJob"] = lambda _: next(answers)
    run("follow", name, "--output", str(tmp_path))
    said = capsys.readouterr().out
    assert "3 completed, 2 in progress, 1 stopped, 2 failed; best 1.2346" in said


def test_a_search_without_a_good_trial_fails_in_one_line(account: Account, tmp_path: Path) -> None:
    name = end_search(account, trial(1, None, "Failed"))
    with pytest.raises(LaunchError, match=f"search {name}: no trial was completed"):
        run("follow", name, "--output", str(tmp_path))


def test_a_search_is_ended_by_its_name(account: Account) -> None:
    run("search", "--dataset", "photos", "--yes")
    stopped: list[Any] = []
    account.answers["StopHyperParameterTuningJob"] = lambda asked: stopped.append(asked) or {}
    run("stop", "bin-counter-261126-120000")
    assert stopped == [{"HyperParameterTuningJobName": "bin-counter-261126-120000"}]
