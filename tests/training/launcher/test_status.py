"""Where a run stands, told from its record and from what the group really does."""

import json
import re
from datetime import UTC, datetime, timedelta

import pytest

from common.run_record import State, utc_now
from tests.support import training_account
from tests.support.training_account import EARLIER, Account, attempt, run
from training.launcher import status
from training.launcher.deployment import Deployment
from training.launcher.status import attempt_dollars, duration, load_run
from training.runs.active_run import CurrentRun

account = training_account.account
RUN = EARLIER["run_id"]


def standing(account: Account) -> tuple[str, str]:
    found = load_run(Deployment.connect(), RUN).live
    return found.state, found.message


def screen(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    """The lines that `status` prints."""
    run("status", *words)
    return capsys.readouterr().out.splitlines()


def test_everything_about_a_run_is_on_one_screen(
    account: Account, capsys: pytest.CaptureFixture[str]
) -> None:
    account.set_desired(1)
    first, second = attempt("i-1", minutes_ago=60), attempt(account.instance(), minutes_ago=30)
    first["ended"] = (datetime.now(UTC) - timedelta(minutes=40)).isoformat(timespec="seconds")
    first["outcome"] = "interrupted"
    record = account.add_run("running", first, second, active=True)
    epoch = {"train_loss": 1.25, "validation_loss": 1.5, "validation_accuracy": 0.314}
    lines = [json.dumps({"epoch": number, **epoch}) for number in (1, 2)]
    account.put(record.key("metrics.jsonl"), "\n".join(lines) + "\n")
    lines = screen(capsys)
    assert lines[0] == f"run {RUN}"
    rows = {line[2:12].strip(): line[13:] for line in lines[1:]}
    assert rows["state"] == "running"
    assert rows["message"] == "is running"
    assert rows["trains"] == "resnet50 on photos"
    assert rows["deadline"].endswith(" UTC, 2 h 00 min left")
    assert rows["attempt 1"].startswith("i-1  c7i.large  us-east-1a  ")
    assert rows["attempt 1"].endswith("  20 min, interrupted")
    assert rows["attempt 2"].endswith("  30 min, running")
    assert rows["progress"] == "epoch 2 of 20, loss 1.250, validation 1.500, 31.4% right"
    assert re.fullmatch(r"\$0\.0\d{3}, 50 min of machine time", rows["cost"])


def test_before_the_first_epoch_progress_is_chunks_of_features(
    account: Account, capsys: pytest.CaptureFixture[str]
) -> None:
    account.at_work()
    for chunk in ("001/features-k/train-00000.npy", "001/features-k/train-00001.npy"):
        account.put(f"checkpoints/{RUN}/{chunk}")
    account.put(f"checkpoints/{RUN}/002/checkpoints-k/checkpoint-00001.pt")
    assert "  progress   features, 2 of 32 chunks" in screen(capsys)


def test_without_a_name_the_active_run_is_looked_at_or_else_the_newest(
    account: Account, capsys: pytest.CaptureFixture[str]
) -> None:
    account.add_run("failed", run={"run_id": "20270101-later", "runtime": "", "launch": "2"})
    account.add_run("failed")
    assert screen(capsys)[0] == "run 20270101-later"
    account.at_work()
    assert screen(capsys)[0] == f"run {RUN}"
    assert screen(capsys, "20270101-later")[0] == "run 20270101-later"


@pytest.mark.parametrize("state", ["succeeded", "failed", "stopped"])
def test_a_run_that_is_over_is_what_its_record_says(account: Account, state: State) -> None:
    account.add_run(state)
    assert standing(account) == (state, f"is {state}")


@pytest.mark.parametrize("state", ["requested", "running", "interrupted"])
def test_a_run_whose_group_is_at_0_ended_without_a_word(
    account: Account, monkeypatch: pytest.MonkeyPatch, state: State
) -> None:
    monkeypatch.setattr(status, "STARTING", timedelta(0))
    account.add_run(state, attempt(), active=True)
    assert standing(account) == (
        "ended",
        f"ended without reporting a status while {state}, see `logs`",
    )


def test_a_run_that_another_one_replaced_ended_without_a_word(account: Account) -> None:
    account.add_run("running", attempt())
    training_account.start()
    assert standing(account)[0] == "ended"


@pytest.mark.parametrize("state", ["requested", "running", "failed"])
def test_a_run_that_was_just_launched_is_being_started(account: Account, state: State) -> None:
    launched = CurrentRun(run_id=EARLIER["run_id"], runtime="", launched=utc_now())
    account.add_run(state, active=True, run=launched)  # resumed, its record tells of its last end
    assert standing(account) == ("requested", "the launch is under way")


def test_a_machine_that_ends_its_run_during_the_look_has_not_ended_without_a_word(
    account: Account,
) -> None:
    record = account.at_work()

    def succeed(operation: str) -> None:
        if operation == "DescribeAutoScalingGroups":
            account.before = lambda _: None
            record.set_status("succeeded", "done", [])
            account.s3.delete_object(Bucket="bins", Key="control/current.json")
            account.set_desired(0)

    account.before = succeed
    assert standing(account) == ("succeeded", "done")


def test_no_capacity_is_never_silent(account: Account) -> None:
    account.add_run("requested", active=True)
    account.lose_machine()
    assert standing(account) == ("requested", "waiting for a machine")
    said = "Could not launch Spot Instances. MaxSpotInstanceCountExceeded\n- Max spot"
    account.answers["DescribeScalingActivities"] = {
        "Activities": [{"StatusMessage": said, "StartTime": datetime.now(UTC)}]
    }
    assert standing(account) == (
        "requested",
        "waiting for a machine; last activity of the group: Could not launch Spot Instances. "
        "MaxSpotInstanceCountExceeded - Max spot",
    )


@pytest.mark.parametrize("state", ["requested", "interrupted", "running"])
def test_a_machine_that_has_not_begun_boots(account: Account, state: State) -> None:
    account.set_desired(1)
    account.add_run(state, attempt("i-lost"), active=True)
    assert standing(account) == (state, f"machine {account.instance()} is booting")


def test_a_run_that_was_asked_to_stop_says_so(account: Account) -> None:
    account.at_work()
    current = {**EARLIER, "stop": True}
    account.put("control/current.json", json.dumps(current))
    assert standing(account) == ("running", "is running; asked to stop")


def test_a_group_that_could_not_be_set_to_0_is_told(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    account.add_run("succeeded")
    account.set_desired(1)
    assert standing(account)[1] == "is succeeded", "its machine is about to do so"
    monkeypatch.setattr(status, "STARTING", timedelta())
    assert standing(account)[1] == (
        "is succeeded; but a machine is still requested: `stop` sets group trainers to 0"
    )


def test_a_machine_without_a_price_costs_an_unknown_amount(
    account: Account, capsys: pytest.CaptureFixture[str]
) -> None:
    strange = attempt()
    strange["instance_type"] = "x9.huge"
    account.add_run("failed", strange)
    assert any("price unknown" in line for line in screen(capsys))


def test_each_machine_costs_what_it_was_bought_for() -> None:
    spot, on_demand = attempt(), attempt()
    on_demand["purchase"] = "on_demand"
    cheap, expensive = attempt_dollars([spot], [3600]), attempt_dollars([on_demand], [3600])
    assert cheap and expensive and expensive > 1.5 * cheap
    assert attempt_dollars([spot, on_demand], [3600, 3600]) == pytest.approx(cheap + expensive)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (29, "29 s"), (61, "1 min"), (3540, "59 min"), (3660, "1 h 01 min"), (-9, "0 s")],
)
def test_durations_are_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words
