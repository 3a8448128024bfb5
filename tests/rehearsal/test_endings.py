"""Every ending of a training machine, in the rehearsal: the real boot script,
training.machine and booking, on rehearsed machines; only training.train is a stand-in.

Nothing runs after the deadline, and at most the work since the last checkpoint is lost. The log of
every machine is in runs/<id>/logs/ and in CloudWatch, up to its end or its last words.

docs/operate.md lists them: what the user sees, and what is lost. A run near its
deadline ends in order two minutes before it: tests/training/machine/test_attempt_endings.py.
"""

import functools
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import boto3
import psutil
import pytest
from botocore.loaders import JSONFileLoader
from moto.server import ThreadedMotoServer

from rehearsal.aws import group as rehearsed_group
from rehearsal.aws import machine as rehearsed_machine
from rehearsal.aws.group import StillRunningError
from rehearsal.aws.processes import Processes
from tests.support.rehearsed_account import Account, administrator, check_permissions, deploy
from tests.support.synthesized import Template
from training.runs.active_run import current_run, request_stop

MODEL = "s3://bins/runs/r1/model.tar.gz"
read_api = functools.cache(JSONFileLoader().load_file)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def account(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Account]:
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/moto-api/reset", b""))
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
    }.items():
        monkeypatch.setenv(name, value)
    for name, seconds in {"LOOK": 0.1, "NOTICE": 10, "SETTLE": 2}.items():
        monkeypatch.setattr(rehearsed_group, f"{name}_SECONDS", seconds)
    # Descriptions of APIs are read once, not in every test.
    monkeypatch.setattr(JSONFileLoader, "load_file", lambda _, path: read_api(path))
    session = administrator()
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", session)
    with Processes(tmp_path / "state") as processes:
        yield deploy(processes, session, endpoint, tmp_path)
    check_permissions(False)


def test_success(account: Account) -> None:
    account.launch("succeeds")
    account.ends()
    assert account.state() == "succeeded"
    assert account.model() == MODEL
    assert account.told() == ["Training run r1 succeeded"]
    [machine] = account.machines
    for log in (account.log(machine), account.cloudwatch(machine)):
        assert "boot: run r1, code and wheels" in log
        assert "train: epoch 2" in log
    cost = account.record.read("cost.json")
    assert 0 < cost["dollars"] < cost["estimate"]["dollars"]


def test_code_that_raises_is_tried_three_times(account: Account) -> None:
    account.launch("raises", failures=1)  # it failed once already
    account.ends()
    reason = "training ended with exit code 1: ValueError: the head has no layers"
    assert account.state() == "failed"
    assert account.message() == f"{reason}; attempt 3 of 3"
    assert account.outcomes() == ["failed"] * 3
    assert account.told() == ["Training run r1 failed"]
    second, third = account.machines
    assert "train: Traceback" in account.log(second)
    assert "train: Traceback" in account.cloudwatch(third)
    assert "train: resuming after epoch 1" in account.log(third)
    assert account.model() == "none"
    assert account.record.read("cost.json")["dollars"] > 0


def test_out_of_memory(account: Account) -> None:
    account.launch("takes all memory", "succeeds")
    account.ends()
    first, _ = account.machines
    assert "was killed, most likely out of memory: take a larger" in account.log(first)
    assert account.outcomes() == ["failed", "succeeded"]
    assert account.record.read("metrics.json") == {"epoch": 3}  # the checkpoint was of epoch 1


def test_boot_without_code(account: Account) -> None:
    account.launch("succeeds")
    account.deployment.s3.delete_object(Bucket="bins", Key="runs/r1/code.tar.gz")
    account.ends()
    ended_by_the_boot_script(account, "(404)")


def test_boot_that_s3_denies(account: Account) -> None:
    account.launch("succeeds")
    account.forbid("s3:GetObject", "arn:aws:s3:::bins/runtime/*")
    account.ends()
    ended_by_the_boot_script(account, "AccessDenied")


def test_boot_with_a_full_disk(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    full = 'echo "tar: spot.py: Cannot write: No space left on device" >&2; exit 2'
    monkeypatch.setitem(rehearsed_machine.SHIMS, "tar", full)
    account.launch("succeeds")
    account.ends()
    ended_by_the_boot_script(account, "No space left on device")


def test_boot_that_is_not_told_which_run(account: Account) -> None:
    account.launch("succeeds")
    account.forbid("s3:GetObject", "arn:aws:s3:::bins/control/*")
    account.ends()
    ended_by_the_boot_script(account, "(403)", run="none")


def ended_by_the_boot_script(account: Account, reason: str, run: str = "r1") -> None:
    """The status is as before; launch status says that the run ended without reporting it."""
    [machine] = account.machines
    assert account.state() == "requested"
    assert account.told() == ["Training machine broke"]
    assert reason in account.log(machine, run)
    assert reason in account.cloudwatch(machine, run)


def test_boot_without_data(account: Account) -> None:
    account.launch("succeeds", failures=2)
    account.deployment.s3.delete_object(Bucket="bins", Key="datasets/photos/manifest.json")
    account.ends()
    assert "s3://bins/datasets/photos/ is empty" in account.message()
    assert account.told() == ["Training run r1 failed"]


def test_interruption_during_boot(account: Account) -> None:
    account.launch("waits")
    machine = account.machine_at("says:boot: run")
    account.group.interrupt(machine)
    account.next_endings("succeeds")
    account.ends()
    assert account.outcomes() == ["interrupted", "succeeded"]
    assert "leaving the run to the next machine" in account.log(machine)


def test_interruption_during_training(account: Account) -> None:
    account.launch("waits", "succeeds")
    account.group.interrupt(account.machine_at("epoch:2"))
    assert account.state() == "interrupted"
    assert account.message() == "EC2 interrupted the machine; trying again"
    account.ends()
    assert account.outcomes() == ["interrupted", "succeeded"]
    first, second = account.machines
    assert "EC2 interrupted the machine: saving a last checkpoint" in account.log(first)
    assert "train: resuming after epoch 2" in account.log(second)  # nothing is lost
    assert account.told() == ["Training run r1 succeeded"]


def test_interruption_during_upload(account: Account) -> None:
    account.launch("is stored slowly", "succeeds")
    machine = account.machine_at("says:storing the results")
    account.group.vanish(machine)
    account.minute_passes()
    assert account.model() == "none"
    account.ends()
    assert account.outcomes() == ["lost", "succeeded"]
    assert account.model() == MODEL


def test_interruption_whose_notice_was_never_seen(account: Account) -> None:
    account.launch("waits", "succeeds")
    machine = account.machine_at("epoch:2")
    account.until(lambda: bool(account.keys("checkpoints/")))
    account.until(lambda: "epoch 2" in account.log(machine))
    account.group.vanish(machine)
    assert account.state() == "running"
    account.minute_passes()
    account.ends()
    assert account.outcomes() == ["lost", "succeeded"]
    _, second = account.machines
    assert "train: resuming after epoch 1" in account.log(second)  # one epoch is lost
    lost, last = account.record.status()["attempts"]
    assert lost["ended"] == last["started"]


def test_recommendation_to_rebalance(account: Account) -> None:
    account.launch("waits")
    machine = account.machine_at("epoch:2")
    machine.metadata.recommend_rebalance()
    checkpoint = "checkpoints/r1/001/checkpoint.json"
    account.until(
        lambda: checkpoint in account.keys("checkpoints/") and stored(account, checkpoint) == "2"
    )
    (machine.work / "go").touch()
    account.ends()
    assert account.outcomes() == ["succeeded"]
    assert account.log(machine).count("an interruption is likely") == 1


def stored(account: Account, key: str) -> str:
    return account.deployment.s3.get_object(Bucket="bins", Key=key)["Body"].read().decode()


def test_training_hangs(account: Account) -> None:
    account.group.settings["SPOT_QUIET_SECONDS"] = "1.5"
    account.launch("hangs", failures=2)
    account.ends()
    assert account.state() == "failed"
    assert account.message().startswith("training hung: nothing printed and no file changed")
    assert account.told() == ["Training run r1 failed"]


def test_the_machine_hangs(account: Account) -> None:
    account.launch("waits")
    machine = account.machine_at("epoch:2")
    account.until(lambda: "epoch 2" in account.log(machine))
    machine.hang()
    account.deadline_comes()
    account.ends()
    assert account.state() == "running"  # launch status says that it ended without reporting it
    assert account.keys("checkpoints/") == ["checkpoints/r1/001/checkpoint.json"]


def test_a_spot_machine_hangs_and_the_fallback_takes_over(account: Account) -> None:
    account.launch("waits", "succeeds")
    machine = account.machine_at("epoch:2")
    account.until(lambda: "epoch 2" in account.log(machine))
    machine.hang()
    account.minute_passes()
    account.fallback_comes()
    account.ends()
    attempts = account.record.status()["attempts"]
    assert [(it["purchase"], it.get("outcome")) for it in attempts] == [
        ("spot", "lost"),
        ("on_demand", "succeeded"),
    ]


def test_the_attempt_itself_is_killed(account: Account) -> None:
    account.launch("waits")
    machine = account.machine_at("epoch:2")
    (spot,) = (
        process
        for process in psutil.Process(machine.process.pid).children(recursive=True)
        if "training.machine" in process.cmdline()
    )
    spot.kill()
    account.ends()
    assert account.told() == ["Training machine broke"]
    assert "Killed" in account.log(machine)
    assert "Killed" in account.cloudwatch(machine)


def test_no_capacity_until_the_deadline(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    account.group.capacity = set()
    account.launch("succeeds")
    with monkeypatch.context() as patch, pytest.raises(StillRunningError):
        patch.setattr(rehearsed_group, "QUIET_SECONDS", 1.0)
        account.group.machine_at("says:boot")
    account.deadline_comes()
    account.ends()
    assert not account.machines
    assert account.state() == "requested"


def test_no_spot_capacity(account: Account) -> None:
    account.group.capacity = {"on-demand"}
    account.launch("succeeds")
    account.fallback_comes()
    account.ends()
    (machine,) = account.machines
    assert machine.metadata.life_cycle == "on-demand"
    (attempt,) = account.record.status()["attempts"]
    assert (attempt["purchase"], attempt.get("outcome")) == ("on_demand", "succeeded")
    (line,) = (it for it in account.record.read("cost.json")["lines"] if "c7i" in it["name"])
    assert "on-demand" in line["name"]


def test_no_spot_capacity_after_an_interruption(account: Account) -> None:
    account.launch("waits", "succeeds")
    first = account.machine_at("epoch:2")
    booked = account.deployment.fallback_time()
    assert booked, "it is put off, not cancelled"
    account.group.capacity = {"on-demand"}
    account.group.interrupt(first)
    account.fallback_comes()
    account.ends()
    attempts = account.record.status()["attempts"]
    assert [(it["purchase"], it.get("outcome")) for it in attempts] == [
        ("spot", "interrupted"),
        ("on_demand", "succeeded"),
    ]


def test_both_machines_come_and_one_is_left(account: Account) -> None:
    account.launch("waits")
    account.fallback_comes()
    worker = account.machine_at("epoch:2")
    assert len(account.machines) == 2
    assert account.group.states() == {"desired": 1, "instances": 1}
    (worker.work / "go").touch()
    account.ends()
    assert account.outcomes() == ["succeeded"]
    assert account.told() == ["Training run r1 succeeded"]


def test_the_end_is_refused_until_the_booking_is_due(account: Account) -> None:
    account.launch("succeeds")
    account.forbid("autoscaling:SetDesiredCapacity")
    machine = account.machine_at("says:\nAn error occurred (AccessDenied)")
    assert account.state() == "succeeded"
    assert not machine.powered_off
    assert account.group.states() == {"desired": 1, "instances": 1}
    account.deadline_comes()
    account.ends()
    assert account.told() == ["Training run r1 succeeded"]


def test_the_group_is_set_to_0_by_hand(account: Account) -> None:
    account.launch("waits")
    machine = account.machine_at("epoch:2")
    account.deployment.end_machines()
    account.ends()
    assert account.outcomes() == ["shut down"]
    assert stored(account, "checkpoints/r1/001/checkpoint.json") == "2"
    # Who hears of it first, training or training.machine, is left to chance.
    assert "attempt 1 shut down: the machine was shut down" in account.log(machine)


def test_the_user_asks_for_the_end(account: Account) -> None:
    account.launch("waits")
    machine = account.machine_at("epoch:2")
    assert request_stop(account.deployment.s3, "bins", "r1")
    account.ends()
    assert account.state() == "stopped"
    assert account.outcomes() == ["stopped"]
    assert account.told() == ["Training run r1 stopped"]
    assert stored(account, "checkpoints/r1/001/checkpoint.json") == "2"
    assert current_run(account.deployment.s3, "bins") is None
    assert account.record.read("cost.json")["dollars"] > 0
    assert "run r1 stopped: stopped by the user" in account.log(machine)


def test_two_machines_overlap(account: Account) -> None:
    account.launch("waits")
    old = account.machine_at("epoch:2")
    account.group.replace(old)
    account.machine_at("says:boot: training", other_than=old)
    (old.work / "go").touch()
    account.ends()
    assert account.outcomes() == ["succeeded"]
    assert account.told() == ["Training run r1 succeeded"]


def test_a_machine_that_lost_the_lease_wakes_up(account: Account) -> None:
    account.launch("waits")
    old = account.machine_at("epoch:2")
    old.hang()
    account.group.replace(old)
    account.minute_passes()
    new = account.machine_at("epoch:2", other_than=old)
    assert account.outcomes() == ["lost", ""]
    before = account.record.status()
    old.wake()
    account.until(lambda: old.powered_off)
    assert "no longer holds the lease: leaving without writing anything" in old.console.read_text()
    assert account.record.status() == before
    (new.work / "go").touch()
    account.ends()
    assert account.outcomes() == ["lost", "succeeded"]


def test_s3_denies_the_model(account: Account) -> None:
    account.forbid("s3:PutObject", "arn:aws:s3:::bins/runs/r1/model.tar.gz")
    account.launch("succeeds")
    account.machine_at("says:leaving the run")
    assert account.state() == "interrupted"
    assert "AccessDenied" in account.message()
    assert account.model() == "none"
    account.allow_everything()
    account.ends()
    assert account.outcomes() == ["failed", "succeeded"]
    assert account.model() == MODEL


@pytest.mark.parametrize("training", ["fills the disk", "leaves no room for the model"])
def test_the_disk_is_full(account: Account, training: str) -> None:
    account.launch(training, failures=2)
    account.ends()
    assert account.state() == "failed"
    assert "No space left on device; attempt 3 of 3" in account.message()
    assert account.model() == "none"
    assert "runs/r1/model.tar.gz" not in account.keys("runs/")


def test_a_deploy_in_the_middle_of_a_run(account: Account, stacks: dict[str, Template]) -> None:
    account.launch("waits")
    machine = account.machine_at("epoch:2")
    account.deploy_again(stacks["TrainStack"].of_type("AWS::AutoScaling::AutoScalingGroup")[0])
    assert account.group.states() == {"desired": 1, "instances": 1}
    (machine.work / "go").touch()
    account.ends()
    assert account.outcomes() == ["succeeded"]
    assert account.machines == [machine]
