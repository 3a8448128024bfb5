"""Nothing starts without its booked end, and of two launches at once exactly one starts."""

import io
import os
import random
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from common.run_record import State
from costs.estimate import Estimate
from tests.support import training_account
from tests.support.training_account import EARLIER, Account, attempt, run, start
from training.launcher import start as start_module
from training.launcher import status
from training.launcher.arguments import LaunchOptions, ModelOptions, parse_training
from training.launcher.deployment import Deployment, LaunchError
from training.launcher.preflight import Plan
from training.runs.active_run import RunActiveError, current_run
from training.runs.fallback import FALLBACK_MINUTES

account = training_account.account

ENDED = EARLIER["run_id"]


def test_time_and_cost_are_stated_before_the_question(
    account: Account, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stated: list[str] = []

    def fake_input(question: str) -> str:
        stated.append(capsys.readouterr().out)
        return "y"

    monkeypatch.setattr("builtins.input", fake_input)
    run("--dataset", "photos", "--max-hours", "2")
    assert "about 9 min and $0.0" in stated[0]
    assert "on a c7i-flex.large, spot" in stated[0]
    assert "ended by force after 2 h 00 min" in stated[0]
    assert "8,000 photos" in stated[0]
    assert account.desired() == 1


def test_a_group_of_on_demand_machines_is_priced_as_such(
    account: Account, capsys: pytest.CaptureFixture[str]
) -> None:
    (described,) = account.autoscaling.describe_auto_scaling_groups()["AutoScalingGroups"]
    policy: Any = described["MixedInstancesPolicy"]
    policy["InstancesDistribution"]["OnDemandPercentageAboveBaseCapacity"] = 100
    account.answers["DescribeAutoScalingGroups"] = {"AutoScalingGroups": [described]}
    start()
    assert "on a c7i-flex.large, on-demand" in capsys.readouterr().out


def test_the_end_is_booked_before_anything_can_spend(account: Account) -> None:
    before = datetime.now(UTC)
    start("--max-hours", "2")
    assert account.order("PutScheduledUpdateGroupAction", "SetDesiredCapacity") == [
        "PutScheduledUpdateGroupAction",
        "SetDesiredCapacity",
    ]
    booking = account.booking()
    assert (booking["MinSize"], booking["DesiredCapacity"]) == (0, 0)
    deadline = datetime.fromisoformat(account.record().request()["deadline"])
    assert abs(deadline - before - timedelta(hours=2)) < timedelta(minutes=1)
    assert abs(booking["StartTime"] - deadline) <= timedelta(seconds=1)
    assert account.desired() == 1


def test_a_second_run_books_anew_instead_of_beside(account: Account) -> None:
    start("--max-hours", "2")
    account.set_desired(0)
    account.record().set_status("failed", "", [])
    account.end_run()
    start("--max-hours", "5")
    assert account.booking()["StartTime"] > datetime.now(UTC) + timedelta(hours=4)


def test_without_a_booking_that_can_be_read_back_nothing_starts(account: Account) -> None:
    account.answers["DescribeScheduledActions"] = {"ScheduledUpdateGroupActions": []}
    with pytest.raises(LaunchError, match="could not be booked: nothing was started"):
        start()
    assert account.order("SetDesiredCapacity") == []
    assert account.nothing_started()
    assert account.record().status()["state"] == "failed"


@pytest.mark.parametrize("off", [timedelta(days=7), timedelta(minutes=-5)])
def test_a_booking_for_another_time_starts_nothing(account: Account, off: timedelta) -> None:
    booked: list[Any] = []

    def stale(_: Any) -> Any:
        (action,) = booked
        return {"ScheduledUpdateGroupActions": [action]}

    def remember(parameters: Any) -> None:
        booked.append({"DesiredCapacity": 0, "StartTime": parameters["StartTime"] + off})

    account.answers["PutScheduledUpdateGroupAction"] = remember
    account.answers["DescribeScheduledActions"] = stale
    with pytest.raises(LaunchError, match="could not be booked: nothing was started"):
        start()
    assert account.order("SetDesiredCapacity") == []
    assert account.nothing_started()


@pytest.mark.parametrize("operation", ["PutScheduledUpdateGroupAction", "SetDesiredCapacity"])
def test_a_start_that_breaks_off_does_not_block_the_next(account: Account, operation: str) -> None:
    account.answers[operation] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        start()
    assert account.nothing_started()
    assert account.record().status()["state"] == "failed"
    del account.answers[operation]
    start()
    assert account.desired() == 1


def test_zones_are_not_evened_out_while_a_machine_works(account: Account) -> None:
    start()
    (group,) = account.autoscaling.describe_auto_scaling_groups()["AutoScalingGroups"]
    suspended = [process["ProcessName"] for process in group["SuspendedProcesses"]]
    assert suspended == ["AZRebalance"]


@pytest.mark.parametrize(
    ("state", "closed"),
    [("running", "failed"), ("interrupted", "failed"), ("succeeded", "succeeded")],
)
def test_a_run_that_ended_without_a_word_is_closed_and_the_new_one_starts(
    account: Account, state: State, closed: str
) -> None:
    ended = account.add_run(state, attempt(), active=True)
    start()
    assert ended.status()["state"] == closed
    (last,) = ended.status()["attempts"]
    assert last.get("outcome") == ("lost" if closed == "failed" else None)
    assert account.active() == account.record().run_id
    assert account.desired() == 1


def test_a_run_at_work_is_not_disturbed(
    account: Account, capsys: pytest.CaptureFixture[str]
) -> None:
    start()
    first, booking = account.record().run_id, account.booking()
    with pytest.raises(LaunchError, match="not started, see above: group"):
        start("--max-hours", "9")
    said = capsys.readouterr().out
    requested = f"run {first} is requested, machine {account.instance()} is booting"
    assert f"{requested}: wait for its end, or run `python" in said
    assert account.booking() == booking
    assert account.active() == first


def test_a_machine_that_is_not_gone_yet_blocks_a_new_run(
    account: Account, capsys: pytest.CaptureFixture[str]
) -> None:
    account.set_desired(1)
    with pytest.raises(LaunchError):
        start()
    assert "the machine of an ended run still exists: wait, or run `python" in (
        capsys.readouterr().out
    )


def test_the_machine_finds_everything_that_was_asked_for(account: Account) -> None:
    account.s3.put_object(Bucket="bins", Key="weights/efficientnet_lite0.pth", Body=b"tensors")
    start("--arch", "efficientnet_lite0", "--", "--epochs", "60")
    record = account.record()
    request = record.request()
    assert (request["run_id"], request["dataset"]) == (record.run_id, "photos")
    assert request["arch"] == "efficientnet_lite0"
    assert request["train_arguments"] == ["--epochs=60"]
    assert (request["epochs"], request["chunks"]) == (60, 28 + 4)
    assert request["runtime"] == "runtime/a/"
    assert "60 epochs" in request["estimate"]["basis"]
    assert record.status()["state"] == "requested"
    active = current_run(account.s3, "bins")
    assert active is not None
    assert (active["run_id"], active["runtime"]) == (record.run_id, "runtime/a/")


@pytest.mark.parametrize("state", ["stopped", "failed", "running", "interrupted"])
def test_a_run_is_resumed_with_its_code_and_a_new_deadline(account: Account, state: State) -> None:
    earlier = account.add_run(state, attempt("i-1"), attempt("i-2"), hours=-1, active=True)
    before = earlier.request()
    run("resume", ENDED, "--yes", "--max-hours", "4")
    request = earlier.request()
    deadline = datetime.fromisoformat(request["deadline"])
    assert abs(deadline - datetime.now(UTC) - timedelta(hours=4)) < timedelta(minutes=1)
    assert abs(account.booking()["StartTime"] - deadline) <= timedelta(seconds=1)
    kept = ("run_id", "dataset", "arch", "train_arguments", "mode", "epochs")
    assert {name: request[name] for name in kept} == {name: before[name] for name in kept}  # type: ignore[literal-required]
    assert request["earlier_attempts"] == 2
    status = earlier.status()
    assert status["state"] == "requested"
    assert [each["instance_id"] for each in status["attempts"]] == ["i-1", "i-2"]
    assert status["attempts"][-1]["outcome"] == "lost"
    code = account.s3.get_object(Bucket="bins", Key=earlier.key("code.tar.gz"))["Body"].read()
    assert code == b"code"
    assert account.active() == ENDED
    assert account.desired() == 1


def test_a_run_is_resumed_with_the_wheels_it_began_with(account: Account) -> None:
    account.add_run("stopped")
    account.put("runtime/b/requirements.txt")  # built since
    run("resume", ENDED, "--yes")
    active = current_run(account.s3, "bins")
    assert active is not None and active["runtime"] == "runtime/a/"


def test_a_run_whose_wheels_are_gone_is_not_resumed(
    account: Account, capsys: pytest.CaptureFixture[str]
) -> None:
    account.add_run("stopped")
    account.put("runtime/b/requirements.txt")
    account.s3.delete_object(Bucket="bins", Key="runtime/a/requirements.txt")
    with pytest.raises(LaunchError, match="not started, see above: wheels"):
        run("resume", ENDED, "--yes")
    assert "runtime/a/ of this run has been deleted: start a new run" in (capsys.readouterr().out)
    assert account.nothing_started()


def test_a_run_that_has_succeeded_is_not_resumed(account: Account) -> None:
    account.add_run("succeeded")
    with pytest.raises(LaunchError, match=f"run {ENDED} has succeeded: start a new one"):
        run("resume", ENDED, "--yes")
    assert account.nothing_started()


def test_a_run_of_an_older_version_is_not_resumed(account: Account) -> None:
    record = account.add_run("stopped")
    record.write("request.json", record.request() | {"version": 1})
    with pytest.raises(LaunchError, match=f"run {ENDED} is from an older version of this code"):
        run("resume", ENDED, "--yes")
    assert account.nothing_started()


def test_a_run_at_work_is_not_resumed(account: Account) -> None:
    account.at_work()
    with pytest.raises(LaunchError, match=f"run {ENDED} is running: is running"):
        run("resume", ENDED, "--yes")


def test_a_run_without_its_code_is_not_resumed(account: Account) -> None:
    record = account.add_run("stopped")
    account.s3.delete_object(Bucket="bins", Key=record.key("code.tar.gz"))
    with pytest.raises(LaunchError, match=r"code\.tar\.gz is missing: start a new run"):
        run("resume", ENDED, "--yes")
    assert account.nothing_started()


def test_no_run_is_resumed_while_another_is_at_work(account: Account) -> None:
    stopped = account.add_run("stopped")
    start()
    with pytest.raises(LaunchError, match="not started, see above: group"):
        run("resume", ENDED, "--yes")
    assert stopped.status()["state"] == "stopped"


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        (True, "continues from its checkpoints, so it needs less"),
        (False, "it starts from the beginning"),
    ],
)
def test_a_resumed_run_says_whether_its_checkpoints_are_still_there(
    account: Account, capsys: pytest.CaptureFixture[str], stored: bool, said: str
) -> None:
    account.add_run("stopped")
    if stored:
        key = f"checkpoints/{ENDED}/001/checkpoints-a/checkpoint-00003.pt"
        account.s3.put_object(Bucket="bins", Key=key, Body=b"")
    run("resume", ENDED, "--yes")
    assert said in capsys.readouterr().out


@dataclass
class Race:
    """Launches without their checks, which read only; many have to fit into a second."""

    account: Account
    deployment: Deployment

    def new(self, hours: float = 2) -> str | None:
        work, _ = parse_training([], ModelOptions(dataset="photos"), "launch")
        options = LaunchOptions(max_hours=hours, yes=True)
        return self._try(
            lambda: start_module.start(self.deployment, work, options, FALLBACK_MINUTES)
        )

    def other(self) -> str | None:
        return self.new(5)

    def resume(self) -> str | None:
        options = LaunchOptions(max_hours=7, yes=True)
        return self._try(
            lambda: start_module.resume(self.deployment, ENDED, options, FALLBACK_MINUTES)
        )

    def _try(self, launch: Callable[[], str]) -> str | None:
        """What a launch that is refused says, in one line; None if it starts a machine."""
        try:
            launch()
        except (LaunchError, RunActiveError) as error:
            assert "\n" not in str(error)
            return str(error)
        return None

    def reset(self, *, pointer: bool) -> None:
        """After a run that ended without reporting it; it is still the active one if `pointer`."""
        self.account.before = lambda operation: None
        self.account.set_desired(0)
        self.account.s3.delete_object(Bucket="bins", Key="control/current.json")
        self.account.add_run("running", attempt(), active=pointer)
        self.account.calls.clear()

    def check(self, refusals: list[str | None]) -> None:
        """One launch started a machine, booked with its deadline, and nobody closed its run."""
        assert sorted(refusal is None for refusal in refusals) == [False, True], refusals
        assert self.account.desired() == 1
        active = self.account.active()
        assert active is not None
        record = self.account.record(active)
        assert record.status()["state"] == "requested"
        deadline = datetime.fromisoformat(record.request()["deadline"])
        assert abs(self.account.booking()["StartTime"] - deadline) <= timedelta(seconds=1)


@pytest.fixture
def race(account: Account, monkeypatch: pytest.MonkeyPatch) -> Race:
    deployment = Deployment.connect()
    plan = Plan(
        runtime="runtime/a/",
        chunks=32,
        instance_type="c7i.large",
        groups=deployment.groups(),
        estimate=Estimate(1, 0.01, "a guess"),
        fallback_dollars=None,
    )
    monkeypatch.setattr(start_module, "make_plan", lambda *_, **__: plan)
    monkeypatch.setattr(start_module, "pack_code", lambda _: b"code")
    return Race(account, deployment)


LAUNCHES = {
    "two new runs": (Race.new, Race.other),
    "a new run and one resumed": (Race.new, Race.resume),
    "one resumed and a new run": (Race.resume, Race.new),
    "one run resumed twice": (Race.resume, Race.resume),
}
Launches = tuple[Callable[[Race], str | None], Callable[[Race], str | None]]


@pytest.mark.parametrize(
    "every", [5, pytest.param(1, marks=pytest.mark.slow)], ids=["some", "each"]
)
@pytest.mark.parametrize(
    ("launches", "pointer"),
    [(LAUNCHES["two new runs"], False), *((launches, True) for launches in LAUNCHES.values())],
    ids=["two new runs, after none", *LAUNCHES],
)
def test_of_two_launches_one_starts_wherever_the_second_falls_into_the_first(
    race: Race, launches: Launches, pointer: bool, every: int, request: pytest.FixtureRequest
) -> None:
    first, second = launches
    race.reset(pointer=pointer)
    first(race)
    moments = len(race.account.calls)
    assert moments > 10
    # Other moments for each pair, so that together they come near to all.
    for moment in range(len(request.node.name) % every, moments, every):
        race.reset(pointer=pointer)
        refusals: list[str | None] = []
        left = iter(range(moment, -2, -1))

        def before(_: str, left: Iterator[int] = left, said: list[str | None] = refusals) -> None:
            if next(left, -1) == 0:
                said.append(second(race))

        race.account.before = before
        refusals.append(first(race))
        race.check(refusals)


@pytest.mark.parametrize("launches", LAUNCHES.values(), ids=LAUNCHES)
def test_of_two_launches_one_starts_however_their_calls_alternate(
    race: Race, launches: Launches
) -> None:
    for seed in range(6):
        race.reset(pointer=bool(seed % 2))
        turns = Turns(random.Random(seed))
        race.account.before = turns.take
        with ThreadPoolExecutor(2) as pool:
            refusals = list(pool.map(turns.play, launches, [race, race]))
        race.account.before = lambda _: None
        race.check(refusals)


class Turns:
    """Lets one of two threads go on at a time; at each call to AWS the dice say which."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self._changed = threading.Condition()
        self._playing: list[int] = []
        self._turn: int | None = None

    def play(self, launch: Callable[[Race], str | None], race: Race) -> str | None:
        me = threading.get_ident()
        with self._changed:
            self._playing.append(me)
            self._changed.notify_all()
            self._changed.wait_for(lambda: len(self._playing) == 2 or self._turn)
            self._throw()
        try:
            return launch(race)
        finally:
            with self._changed:
                self._playing.remove(me)
                self._throw()

    def take(self, _: str) -> None:
        """Before a call: the dice are thrown, and who is not named waits."""
        with self._changed:
            if self._turn == threading.get_ident():
                self._throw()
            assert self._changed.wait_for(lambda: self._turn == threading.get_ident(), 30)

    def _throw(self) -> None:
        self._turn = self._dice.choice(sorted(self._playing)) if self._playing else None
        self._changed.notify_all()


def test_a_launch_that_took_too_long_leaves_the_one_that_replaced_it_alone(
    race: Race, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "STARTING", timedelta(0))
    replaced_by: list[str | None] = []
    seen: list[str] = []

    def before(operation: str) -> None:
        if seen.count("PutObject") == 4:  # code, request, status, and the active run
            race.account.before = lambda _: None
            replaced_by.append(race.other())
        seen.append(operation)

    race.reset(pointer=False)
    race.account.before = before
    assert str(race.new()).endswith("was stopped or replaced while it was starting")
    assert replaced_by == [None]
    assert race.account.order("SetDesiredCapacity") == ["SetDesiredCapacity"]
    race.check([None, "refused"])  # the booking is the other's, too


def test_a_run_whose_machine_works_since_the_look_at_the_group_is_not_closed(race: Race) -> None:
    seen: list[str] = []

    def before(operation: str) -> None:
        if seen.count("DescribeAutoScalingGroups") == 2:  # the second one is after the question
            race.account.before = lambda _: None
            race.account.at_work()
        seen.append(operation)

    race.account.before = before
    assert race.new() == f"run {ENDED} is active"
    assert race.account.record(ENDED).status()["state"] == "running"
    assert race.account.active() == ENDED


@pytest.fixture
def code(account: Account, tmp_path: Path) -> Path:
    """The folder where the boot script unpacks code.tar.gz."""
    start()
    record = account.record()
    archive = account.s3.get_object(Bucket="bins", Key=record.key("code.tar.gz"))["Body"].read()
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(tmp_path / "code", filter="data")
    return tmp_path / "code"


def test_the_code_is_all_that_a_machine_runs_and_nothing_else(code: Path) -> None:
    files = {file.relative_to(code).as_posix() for file in code.rglob("*") if file.is_file()}
    assert {
        "training/machine/__main__.py",
        "training/machine/attempt.py",
        "training/evaluate/report.html.j2",
        "serving/container/preprocess.py",
        "costs/prices.json",
    } <= files
    assert {name.partition("/")[0] for name in files} == {"common", "training", "serving", "costs"}
    assert {Path(name).suffix for name in files} == {".py", ".json", ".j2"}


def test_the_code_runs_without_the_checkout(code: Path, tmp_path: Path) -> None:
    script = "import training.train; from training.machine import attempt; print(attempt.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(code)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(code / "training" / "machine" / "attempt.py")
