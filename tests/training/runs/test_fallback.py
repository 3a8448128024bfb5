"""What the launcher does for the case that no spot machine comes."""

import json
import re
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.support import training_account
from tests.support.training_account import EARLIER, GROUP, ON_DEMAND, Account, quota, run, start
from training.launcher import status
from training.launcher.deployment import LaunchError

account = training_account.account
clock = training_account.clock


@pytest.fixture(autouse=True)
def with_fallback(account: Account) -> None:
    account.add_fallback()


def booked(account: Account, group: str = ON_DEMAND) -> dict[str, tuple[int, datetime]]:
    """By name: how many machines, and when."""
    actions: Any = account.autoscaling.describe_scheduled_actions(AutoScalingGroupName=group)
    return {
        each["ScheduledActionName"]: (each["DesiredCapacity"], each["StartTime"])
        for each in actions["ScheduledUpdateGroupActions"]
    }


def near(moment: datetime, minutes: float) -> bool:
    return abs(moment - datetime.now(UTC) - timedelta(minutes=minutes)) < timedelta(minutes=2)


def test_a_launch_asks_for_spot_and_books_on_demand(
    account: Account, capsys: pytest.CaptureFixture[str]
) -> None:
    start()
    assert (account.desired_of(GROUP), account.desired_of(ON_DEMAND)) == (1, 0)
    machines, when = booked(account)["fallback"]
    assert machines == 1
    assert near(when, 20)
    said = capsys.readouterr().out
    assert "c7i-flex.large, spot" in said
    assert "on demand, for $" in said
    assert "if no spot machine works on it for 20 min" in said


def test_how_long_is_a_flag_and_its_machines_know_it(account: Account) -> None:
    start("--fallback-minutes", "45")
    assert near(booked(account)["fallback"][1], 45)
    assert account.record().request().get("fallback_minutes") == 45


@pytest.mark.parametrize(
    ("minutes", "message"),
    [
        ("0", "Must be >= 5"),
        ("4.9", "Must be >= 5"),
        ("nan", "Must be <= 10080"),
        ("soon", "unable to convert"),
        ("100000", "Must be <= 10080"),
    ],
)
def test_a_machine_is_given_the_time_to_boot(
    minutes: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        start("--fallback-minutes", minutes)
    error = capsys.readouterr().err
    assert "--fallback-minutes" in error
    assert message in error


def test_both_groups_end_at_the_deadline(account: Account) -> None:
    start("--max-hours", "2")
    for group in (GROUP, ON_DEMAND):
        machines, when = booked(account, group)[f"end-{group}"]
        assert machines == 0
        assert near(when, 120)
    booking, raising = "PutScheduledUpdateGroupAction", "SetDesiredCapacity"
    assert account.order(booking, raising) == [booking] * 4 + [raising]


def test_a_launch_that_breaks_off_leaves_no_machine_to_come(account: Account) -> None:
    denied = ClientError({"Error": {"Code": "AccessDenied"}}, "SetDesiredCapacity")
    account.answers["SetDesiredCapacity"] = denied
    with pytest.raises(ClientError):
        start()
    assert "fallback" not in booked(account)


def test_a_launch_that_is_stopped_meanwhile_leaves_no_machine_to_come(
    account: Account, clock: Any
) -> None:
    def stop_now(operation: str) -> None:
        if operation == "PutScheduledUpdateGroupAction":
            account.before = lambda _: None
            run("stop")

    account.before = stop_now
    with pytest.raises(RuntimeError, match="was stopped or replaced while it was starting"):
        start()
    assert "fallback" not in booked(account)


def test_a_launch_that_cannot_even_say_so_leaves_no_machine_to_come(account: Account) -> None:
    denied = ClientError({"Error": {"Code": "AccessDenied"}}, "SetDesiredCapacity")

    def break_off(operation: str) -> None:
        if operation == "SetDesiredCapacity":
            account.answers["PutObject"] = denied
            raise denied

    account.before = break_off
    with pytest.raises(ClientError):
        start()
    assert "fallback" not in booked(account)


def test_groups_that_were_set_to_0_by_hand_are_not_the_end_while_a_machine_is_booked(
    account: Account,
    clock: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start()
    monkeypatch.setattr(status, "STARTING", timedelta(0))
    record = account.record()
    account.autoscaling.set_desired_capacity(AutoScalingGroupName=GROUP, DesiredCapacity=0)
    when = booked(account)["fallback"][1]
    run("status")
    assert f"an on-demand machine is booked for {when:%H:%M} UTC" in capsys.readouterr().out
    run("stop")
    assert record.status()["state"] == "stopped"
    assert "fallback" not in booked(account)
    with pytest.raises(LaunchError, match="no run is active"):
        run("stop")


def test_a_machine_that_is_booked_without_a_run_is_cancelled(
    account: Account, capsys: pytest.CaptureFixture[str]
) -> None:
    start()
    account.end_run()
    account.autoscaling.set_desired_capacity(AutoScalingGroupName=GROUP, DesiredCapacity=0)
    run("stop")
    assert "set to 0" in capsys.readouterr().out
    assert "fallback" not in booked(account)


@pytest.mark.parametrize("refused", [GROUP, ON_DEMAND])
def test_a_group_that_cannot_be_set_to_0_leaves_no_machine_in_the_other(
    account: Account, refused: str
) -> None:
    def refuse(parameters: Any) -> None:
        if parameters["AutoScalingGroupName"] == refused:
            raise ClientError({"Error": {"Code": "ValidationError"}}, "SetDesiredCapacity")

    for group in (GROUP, ON_DEMAND):
        account.autoscaling.set_desired_capacity(AutoScalingGroupName=group, DesiredCapacity=1)
    account.answers["SetDesiredCapacity"] = refuse
    with pytest.raises(ClientError):
        run("stop")
    assert {account.desired_of(GROUP), account.desired_of(ON_DEMAND)} == {0, 1}
    assert account.desired_of(refused) == 1


def test_no_fallback_comes_after_the_deadline(account: Account) -> None:
    start("--max-hours", "0.1")
    assert "fallback" not in booked(account)


def test_status_says_when_it_comes(account: Account, capsys: pytest.CaptureFixture[str]) -> None:
    start()
    when = booked(account)["fallback"][1]
    groups = account.autoscaling.describe_auto_scaling_groups()["AutoScalingGroups"]
    account.answers["DescribeAutoScalingGroups"] = {
        "AutoScalingGroups": [group | {"Instances": []} for group in groups]
    }
    account.answers["DescribeScalingActivities"] = {"Activities": []}
    run("status")
    expected = f"waiting for a machine; an on-demand machine is booked for {when:%H:%M} UTC"
    assert expected in capsys.readouterr().out


def test_a_stop_leaves_no_machine_and_none_to_come(account: Account, clock: Any) -> None:
    start()
    account.autoscaling.set_desired_capacity(AutoScalingGroupName=ON_DEMAND, DesiredCapacity=1)
    run("stop")
    assert (account.desired_of(GROUP), account.desired_of(ON_DEMAND)) == (0, 0)
    assert "fallback" not in booked(account)


def test_a_stop_leaves_the_fallback_to_a_launch_that_takes_the_place_meanwhile(
    account: Account,
) -> None:
    account.add_run("running", training_account.attempt(), active=True)  # it has ended unsaid

    def launch(operation: str) -> None:
        if operation == "DeleteObject":
            account.before = lambda _: None
            account.put("control/current.json", json.dumps(EARLIER | {"launch": "another"}))
            account.autoscaling.put_scheduled_update_group_action(
                AutoScalingGroupName=ON_DEMAND,
                ScheduledActionName="fallback",
                StartTime=datetime.now(UTC) + timedelta(minutes=20),
                DesiredCapacity=1,
            )

    account.before = launch
    run("stop")
    assert "fallback" in booked(account)


@pytest.mark.parametrize("code", ["ValidationError", "AccessDenied"])
def test_a_stop_needs_no_fallback_to_cancel(account: Account, code: str) -> None:
    account.autoscaling.set_desired_capacity(AutoScalingGroupName=GROUP, DesiredCapacity=1)
    refusal = ClientError({"Error": {"Code": code, "Message": "-"}}, "DeleteScheduledAction")
    account.answers["DeleteScheduledAction"] = refusal
    with nullcontext() if code == "ValidationError" else pytest.raises(ClientError):
        run("stop")
    assert account.desired_of(GROUP) == 0


def test_a_machine_on_demand_is_one_at_work(account: Account) -> None:
    account.autoscaling.set_desired_capacity(AutoScalingGroupName=ON_DEMAND, DesiredCapacity=1)
    with pytest.raises(LaunchError, match="group"):
        start()


def test_a_run_that_goes_on_falls_back_as_well(account: Account) -> None:
    account.add_run("failed")
    run("resume", EARLIER["run_id"], "--yes", "--fallback-minutes", "10")
    assert near(booked(account)["fallback"][1], 10)
    assert account.record(EARLIER["run_id"]).request().get("fallback_minutes") == 10


def test_a_quota_that_is_too_small_for_the_fallback_is_a_warning(
    account: Account, capsys: pytest.CaptureFixture[str]
) -> None:
    account.answers["GetServiceQuota"] = quota({"L-1216C47A": 1})
    start()
    (line,) = (it for it in capsys.readouterr().out.splitlines() if "  quota  " in it)
    assert line.strip().startswith("warning")
    assert "the fallback cannot start: 1 vCPUs" in line


def test_the_budget_has_to_pay_for_the_fallback(
    account: Account, capsys: pytest.CaptureFixture[str]
) -> None:
    start()
    account.end_run()
    run("stop")
    spot, on_demand = (float(each) for each in re.findall(r"\$(0\.\d+)", capsys.readouterr().out))
    assert spot < on_demand
    left = {"ActualSpend": {"Amount": str(10 - (spot + on_demand) / 2)}}
    budget = {"BudgetLimit": {"Amount": "10"}, "CalculatedSpend": left}
    account.answers["DescribeBudget"] = {"Budget": budget}
    with pytest.raises(LaunchError, match="budget"):
        start()


def test_a_group_that_is_gone_is_named(account: Account) -> None:
    account.autoscaling.delete_auto_scaling_group(AutoScalingGroupName=ON_DEMAND)
    with pytest.raises(LaunchError, match=f"group {ON_DEMAND} is missing"):
        start()
