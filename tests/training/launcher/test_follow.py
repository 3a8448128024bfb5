"""What a user sees while a run goes on, and what Ctrl-C does to it."""

import json
import sys

import pytest

from tests.support import training_account
from tests.support.training_account import EARLIER, Account, Clock, run
from training.launcher.follow import StatusLine

account = training_account.account
clock = training_account.clock
RUN = EARLIER["run_id"]


def end(account: Account, state: str, message: str) -> None:
    """What a machine does at the end of a run."""
    account.record(RUN).set_status(state, message, [])  # type: ignore[arg-type]
    account.s3.delete_object(Bucket="bins", Key="control/current.json")
    account.set_desired(0)


@pytest.mark.parametrize(("state", "succeeded"), [("succeeded", True), ("failed", False)])
def test_a_run_is_followed_to_its_end(
    account: Account,
    clock: Clock,
    capsys: pytest.CaptureFixture[str],
    state: str,
    succeeded: bool,
) -> None:
    account.at_work()
    epoch = {"train_loss": 1, "validation_loss": 1, "validation_accuracy": 0.3}

    def meanwhile() -> None:
        if clock.sleeps == 2:
            account.put(f"checkpoints/{RUN}/001/features-k/train-00000.npy")
        if clock.sleeps in (4, 5):
            line = json.dumps({"epoch": clock.sleeps, **epoch})
            account.put(f"runs/{RUN}/metrics.jsonl", line)
        if clock.sleeps == 6:
            end(account, state, "that is all")

    clock.meanwhile = meanwhile
    assert run("follow") is succeeded
    lines = [line[10:] for line in capsys.readouterr().out.splitlines()]
    assert lines[:4] == [
        "running, is running",
        "features, 1 of 32 chunks; running, is running",
        "epoch 4 of 20, loss 1.000, validation 1.000, 30.0% right; running, is running",
        "epoch 5 of 20, loss 1.000, validation 1.000, 30.0% right; running, is running",
    ], "a line for each change, and none for what stays the same"
    assert lines[4:] == [f"run {RUN}"[10:], *lines[5:]]
    assert any("that is all" in line for line in lines[4:])
    assert clock.now == 60


def test_a_run_that_ends_without_a_word_ends_the_following(
    account: Account, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    account.at_work()
    clock.meanwhile = lambda: account.set_desired(0)
    assert run("follow") is False
    assert "ended without reporting a status while running, see `logs`" in capsys.readouterr().out


def test_ctrl_c_leaves_the_run_alone_and_says_how_to_look_again(
    account: Account, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    account.at_work()

    def interrupt() -> None:
        raise KeyboardInterrupt

    clock.meanwhile = interrupt
    assert run("follow") is False
    said = capsys.readouterr().out
    assert f"`python -m training.launch follow {RUN}`" in said
    assert f"`python -m training.launch stop {RUN}`" in said
    assert account.desired() == 1
    assert account.active() == RUN


def test_on_a_terminal_one_line_is_written_over(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "30")
    with StatusLine() as line:
        line.show("running", "$0.01; ")
        line.show("running", "$0.02; ")
        line.show("a line that is longer than the terminal is wide")
    assert capsys.readouterr().out == (
        "\r$0.01; running\x1b[K\r$0.02; running\x1b[K\ra line that is longer than th\x1b[K\n"
    )
