"""The table of all runs."""

import boto3
import pytest

from common.run_record import State
from tests.support import training_account
from tests.support.training_account import Account, attempt, run
from training.launcher import list_runs
from training.runs.active_run import CurrentRun

account = training_account.account


def add(account: Account, run_id: str, state: State) -> None:
    done = attempt(minutes_ago=30)
    done["ended"] = attempt(minutes_ago=20)["started"]
    record = account.add_run(state, done, run=CurrentRun(run_id=run_id, runtime=""))
    record.write("metrics.json", {"test": {"accuracy": {"value": 0.3333}}})


def table(capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    run("list")
    return [line.split("  ") for line in capsys.readouterr().out.splitlines()]


def test_runs_are_listed_newest_first_with_state_cost_and_accuracy(
    account: Account, capsys: pytest.CaptureFixture[str]
) -> None:
    add(account, "20260101-old", "succeeded")
    add(account, "20260301-new", "failed")
    account.at_work()  # 20260101-000000, between them
    account.put("runs/none/logs/i-1.log")
    boto3.client("ssm").put_parameter(
        Name="/model", Value="s3://bins/runs/20260101-old/model.tar.gz", Overwrite=True
    )
    rows = [[cell.strip() for cell in row if cell] for row in table(capsys)]
    assert rows[0] == ["run", "state", "started (UTC)", "machines", "cost", "exact"]
    assert [row[:2] for row in rows[1:]] == [
        ["20260301-new", "failed"],
        ["20260101-old", "succeeded"],
        ["20260101-000000-resnet50-aaaa", "running"],
    ]
    assert rows[2][3:] == ["1, 10 min", rows[1][4], "33.3%", "← model"]
    assert rows[1][3:4] == ["1, 10 min"]
    assert 0.001 < float(rows[1][4].removeprefix("$")) < 0.1
    assert len(rows[1]) == 5, "no accuracy without success"


def test_before_the_first_model_no_run_is_marked(
    account: Account, capsys: pytest.CaptureFixture[str]
) -> None:
    add(account, "20260101-old", "failed")
    run("list")
    assert "model" not in capsys.readouterr().out


def test_a_run_without_a_record_does_not_hide_the_others(
    account: Account, capsys: pytest.CaptureFixture[str]
) -> None:
    add(account, "20260101-good", "failed")
    account.put("runs/20260201-strange/notes.txt")
    assert [row[0].strip() for row in table(capsys)[1:]] == ["20260201-strange", "20260101-good"]


def test_of_many_runs_the_newest_are_shown(
    account: Account, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(list_runs, "SHOWN", 1)
    for run_id in ("1", "2", "3"):
        add(account, run_id, "failed")
    lines = ["  ".join(row) for row in table(capsys)]
    assert lines[1].split()[0] == "3"
    assert lines[2] == "and 2 older runs"
