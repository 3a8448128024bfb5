"""What a user of `python -m training.launch` sees: its flags, and what goes wrong."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError, NoCredentialsError

from common.files import ROOT
from tests.support import training_account
from tests.support.training_account import Account, run
from training import launch
from training.launcher.arguments import ModelOptions, parse_training
from training.launcher.deployment import LaunchError

account = training_account.account
clock = training_account.clock


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> str:
    """Run the command, which is to fail; returns what it says to the user."""
    monkeypatch.setattr(sys, "argv", ["launch", *words])
    with pytest.raises(SystemExit) as caught:
        launch.main()
    message = str(caught.value.code)
    assert message.strip().count("\n") == 0
    return message.strip()


def test_help_shows_how_to_start_and_each_command_on_one_screen(
    capsys: pytest.CaptureFixture[str],
) -> None:
    run("--help")
    text = capsys.readouterr().out
    assert len(text.splitlines()) < 46
    for word in ("status", "follow", "logs", "stop", "resume", "list", "--max-hours", "--yes"):
        assert word in text


@pytest.mark.parametrize("name", ["status", "follow", "logs", "stop", "resume", "list"])
def test_each_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(name, "--help")
    assert len(capsys.readouterr().out) > 80


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--", "--epochs", "zero"], "--epochs"),
        (["--", "--epochs", "0"], "--epochs"),
        (["--", "--epoks", "9"], "--epoks"),
        (["--", "--data", "elsewhere"], "Unknown option: --data"),
        (["--", "--checkpoint-dir", "/tmp"], "Unknown option: --checkpoint-dir"),
        (["--max-hours", "0.0001"], '"0.0001" for --max-hours. Must be >= 0.1'),
        (["--max-hours", "0"], "--max-hours. Must be >= 0.1"),
        (["--max-hours", "nan"], "--max-hours. Must be <= 168"),
        (["--max-hours", "1000"], "--max-hours. Must be <= 168"),
        (["--max-hours", "abc"], '--max-hours: unable to convert "abc"'),
        (["--epochs", "9"], "Unknown option: --epochs"),
        (["stauts"], "Unexpected argument: stauts"),
        (["resume"], "RUN is required"),
        (["status", "one", "two"], "Unexpected argument: two"),
    ],
)
def test_wrong_words_are_refused_before_anything_is_asked_of_aws(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run(*words)
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_the_architecture_is_a_flag_of_the_launch() -> None:
    with pytest.raises(LaunchError, match=r"--arch .* before --"):
        run("--", "--arch", "efficientnet_lite0")


def test_the_last_of_a_repeated_flag_counts() -> None:
    words = ["--epochs", "5", "--epochs=7", "--profile", "--profile"]
    work, values = parse_training(words, ModelOptions(), "launch")
    assert (work["epochs"], values) == (7, {"epochs": 7, "profile": True})


def test_a_stack_that_is_not_deployed_is_one_line(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    boto3.client("cloudformation").delete_stack(StackName="bin-counter-TrainStack")
    assert command(monkeypatch) == (
        "error: bin-counter-TrainStack is not deployed here: run `npx cdk deploy TrainStack`, or "
        "set BIN_COUNTER_NAME to the name of the deployed copy"
    )


@pytest.mark.parametrize("words", [[], ["status"], ["list"], ["stop"], ["resume", "r1"]])
def test_a_refusal_of_aws_is_one_line(
    account: Account, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    refusal: Any = {"Error": {"Code": "AccessDenied", "Message": "not\nyours"}}
    account.answers["AssumeRole"] = ClientError(refusal, "AssumeRole")
    assert command(monkeypatch, *words).startswith("error: AWS: An error occurred (AccessDenied)")


def test_no_credentials_are_one_line(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    account.answers["DescribeStacks"] = NoCredentialsError()
    assert command(monkeypatch, "status") == (
        "error: AWS: Unable to locate credentials: sign in with `aws sso login` or `aws configure`"
    )


@pytest.mark.parametrize("operation", ["PutObject", "PutScheduledUpdateGroupAction"])
def test_over_budget_the_refusal_says_how_to_lift_it(
    account: Account, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    message = "not authorized, with an explicit deny in an identity-based policy"
    refusal: Any = {"Error": {"Code": "AccessDenied", "Message": message}}
    account.answers[operation] = ClientError(refusal, operation)
    assert "LiftDeny" in command(monkeypatch, "--dataset", "photos", "--yes")
    assert account.nothing_started()


@pytest.mark.parametrize("name", ["status", "follow", "logs", "resume", "stop"])
def test_an_unknown_run_is_one_line(
    account: Account, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    account.at_work()
    assert command(monkeypatch, name, "r9") == (
        "error: there is no run r9: see `python -m training.launch list`"
    )


@pytest.mark.parametrize("name", ["status", "follow", "logs", "list"])
def test_before_the_first_run_there_is_nothing_to_look_at(
    account: Account, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    assert command(monkeypatch, name) == (
        "error: there is no run yet: start one with `python -m training.launch`"
    )


def test_a_group_that_is_gone_is_one_line(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    account.answers["DescribeAutoScalingGroups"] = {"AutoScalingGroups": []}
    message = command(monkeypatch, "--dataset", "photos")
    assert message == "error: group trainers is missing: run `npx cdk deploy TrainStack` again"


@pytest.mark.parametrize("reply", ["n", "", "maybe", EOFError(), KeyboardInterrupt()])
def test_anything_but_yes_starts_nothing(
    account: Account, monkeypatch: pytest.MonkeyPatch, reply: str | BaseException
) -> None:
    def fake_input(question: str) -> str:
        assert question == "Start it? [y/N] "
        if isinstance(reply, BaseException):
            raise reply
        return reply

    monkeypatch.setattr("builtins.input", fake_input)
    assert command(monkeypatch, "--dataset", "photos") == "error: not started"
    assert account.nothing_started()
    assert account.run_ids() == set()


def test_a_run_that_does_not_succeed_is_a_failure_of_the_command_that_follows_it(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    account.add_run("failed")
    assert command(monkeypatch, "follow") == "1"


def test_start_and_follow_are_one_command(
    account: Account, clock: training_account.Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    def succeed() -> None:
        account.record().set_status("succeeded", "model at s3://…", [])

    clock.meanwhile = succeed
    assert run("--dataset", "photos", "--yes", "--follow") is True
    assert "model at s3://…" in capsys.readouterr().out


def test_every_call_but_the_look_at_the_stacks_is_made_with_the_launcher_s_role(
    account: Account,
) -> None:
    account.calls.clear()
    training_account.start()
    as_user = {"DescribeStacks", "AssumeRole"}
    keys = {key for operation, key in account.calls if operation not in as_user}
    users = {key for operation, key in account.calls if operation in as_user}
    assert len(keys) == 1
    assert keys.isdisjoint(users)
    (key,) = keys
    assert key.startswith("ASIA"), "a temporary key, from sts"


def test_the_command_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "training.launch", "stauts"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    script = """
import sys
from training import launch
launch.Deployment.connect = lambda: None
launch.choose_run = lambda *_: "r1"
launch.print_logs = lambda *_, **__: print("line\\n" * int(sys.argv.pop()))
sys.argv[1:1] = ["logs"]
launch.main()
"""
    for lines in ("1", "100000"):  # all is still in the buffer at the end, or not
        read, write = os.pipe()
        os.close(read)
        done = subprocess.run(
            [sys.executable, "-c", script, lines],
            env={**os.environ, "PYTHONUNBUFFERED": ""},
            stdout=write,
            stderr=subprocess.PIPE,
            text=True,
        )
        os.close(write)
        assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_the_settings_that_a_search_found_go_with_the_request(tmp_path: Path) -> None:
    best = tmp_path / "best.json"
    best.write_text('{"mode": "finetune", "epochs": 7, "learning_rate": 0.002}')
    words = ["--settings", str(best), "--batch-size", "16"]
    work, values = parse_training(words, ModelOptions(), "launch")
    assert (work["mode"], work["epochs"]) == ("finetune", 7)
    assert sorted(work["train_arguments"]) == [
        *("--batch-size=16", "--epochs=7", "--learning-rate=0.002", "--mode=finetune")
    ]
    assert values == {"mode": "finetune", "epochs": 7, "learning_rate": 0.002, "batch_size": 16}


def test_settings_that_cannot_be_read_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run("--", "--settings", str(tmp_path / "none.json"))
    assert f"no file {tmp_path / 'none.json'}" in capsys.readouterr().err
