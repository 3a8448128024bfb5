"""How a run is ended before its time, with its machine's help and without."""

import pytest

from tests.support import training_account
from tests.support.training_account import EARLIER, Account, Clock, run
from training.launcher.deployment import LaunchError
from training.runs.active_run import stop_requested

account = training_account.account
clock = training_account.clock
RUN = EARLIER["run_id"]


def test_the_machine_takes_its_checkpoint_and_ends_the_run(
    account: Account, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    record = account.at_work()
    asked: list[bool] = []

    def meanwhile() -> None:
        asked.append(stop_requested(account.s3, "bins"))
        if clock.sleeps == 2:
            attempts = record.status()["attempts"]
            record.set_status("stopped", "stopped by the user; epoch 7 is kept", attempts)
            account.s3.delete_object(Bucket="bins", Key="control/current.json")
        if clock.sleeps == 3:
            account.set_desired(0)

    clock.meanwhile = meanwhile
    account.calls.clear()
    run("stop")
    assert asked[0]
    said = capsys.readouterr().out
    assert f"run {RUN} stopped: stopped by the user; epoch 7 is kept" in said
    assert f"`python -m training.launch resume {RUN}`" in said
    assert clock.now == 30
    assert account.order("SetDesiredCapacity") == ["SetDesiredCapacity"], "only the machine's"
    assert account.nothing_started()


def test_a_machine_that_does_not_answer_is_ended_after_three_minutes(
    account: Account, clock: Clock
) -> None:
    record = account.at_work()
    run("stop")
    assert clock.now == pytest.approx(180, abs=20)
    assert account.nothing_started()
    status = record.status()
    assert (status["state"], status["attempts"][-1]["outcome"]) == ("stopped", "stopped")
    assert "ended" in status["attempts"][-1]


def test_before_a_machine_works_there_is_nothing_to_wait_for(
    account: Account, clock: Clock
) -> None:
    training_account.start()
    record = account.record()
    run("stop")
    assert clock.now == 0
    assert record.status()["state"] == "stopped"
    assert account.nothing_started()


def test_a_run_that_waits_for_a_machine_is_stopped_at_once(account: Account, clock: Clock) -> None:
    record = account.at_work()
    account.lose_machine()

    def idle_from_now(operation: str) -> None:
        if operation == "SetDesiredCapacity":
            account.answers.pop("DescribeAutoScalingGroups", None)

    account.before = idle_from_now
    run("stop")
    assert clock.now == 0
    assert record.status()["state"] == "stopped"


def test_a_machine_that_ec2_does_not_end_may_still_write_its_record(
    account: Account, clock: Clock
) -> None:
    record = account.at_work()
    (group,) = account.autoscaling.describe_auto_scaling_groups()["AutoScalingGroups"]
    account.answers["DescribeAutoScalingGroups"] = {
        "AutoScalingGroups": [{**group, "DesiredCapacity": 0}]
    }
    with pytest.raises(LaunchError, match="set to 0, but EC2 has not ended the machine"):
        run("stop")
    assert clock.now == pytest.approx(300, abs=20)
    assert record.status()["state"] == "running"
    assert account.active() == RUN


def test_only_the_active_run_can_be_stopped(account: Account) -> None:
    account.add_run("failed")
    with pytest.raises(LaunchError, match=f"run {RUN} is not active: failed, is failed"):
        run("stop", RUN)
    with pytest.raises(LaunchError, match="no run is active"):
        run("stop")


def test_a_group_that_is_still_at_1_is_set_to_0(
    account: Account, capsys: pytest.CaptureFixture[str]
) -> None:
    account.add_run("succeeded")
    account.set_desired(1)
    run("stop")
    assert account.desired() == 0
    assert capsys.readouterr().out == "no run is active; group trainers set to 0\n"


def test_a_run_that_ended_without_a_word_is_closed(
    account: Account, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    record = account.add_run("running", training_account.attempt(), active=True)
    run("stop")
    assert record.status()["state"] == "failed"
    assert account.active() is None
    assert "had already ended: ended without reporting" in capsys.readouterr().out


def test_ctrl_c_says_that_the_request_stands(account: Account, clock: Clock) -> None:
    account.at_work()

    def interrupt() -> None:
        raise KeyboardInterrupt

    clock.meanwhile = interrupt
    with pytest.raises(LaunchError, match="has been asked to stop: see `status`, or `stop` again"):
        run("stop")
    assert stop_requested(account.s3, "bins")
    assert account.active() == RUN


def test_a_stopped_launch_starts_no_machine_after_all(account: Account, clock: Clock) -> None:
    def stop_now(operation: str) -> None:
        if operation == "PutScheduledUpdateGroupAction":
            account.before = lambda _: None
            run("stop")

    account.before = stop_now
    with pytest.raises(RuntimeError, match="was stopped or replaced while it was starting"):
        training_account.start()
    assert account.nothing_started()
    assert account.record().status()["state"] == "stopped"


def test_another_run_that_starts_meanwhile_is_left_alone(account: Account, clock: Clock) -> None:
    record = account.at_work()

    def meanwhile() -> None:
        if clock.sleeps == 1:
            record.set_status("stopped", "", [])
            account.s3.delete_object(Bucket="bins", Key="control/current.json")
            account.set_desired(0)
            training_account.start()

    clock.meanwhile = meanwhile
    run("stop")
    assert account.active() == account.record().run_id
    assert account.desired() == 1


def test_the_same_run_that_another_launch_resumes_meanwhile_is_left_alone(
    account: Account, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    record = account.at_work()

    def meanwhile() -> None:
        if clock.sleeps == 1:
            attempts = record.status()["attempts"]
            record.set_status("stopped", "stopped by the user", attempts)
            account.s3.delete_object(Bucket="bins", Key="control/current.json")
            account.set_desired(0)
            run("resume", RUN, "--yes")

    clock.meanwhile = meanwhile
    run("stop")
    assert record.status()["state"] == "requested"
    assert account.active() == RUN
    assert account.desired() == 1
    assert clock.now == 10
    said = capsys.readouterr().out.splitlines()
    assert said[-1].startswith(f"run {RUN} requested: resumed")
