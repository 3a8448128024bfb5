"""The logs of a run's machines, one after the other, and as they grow."""

import pytest

from tests.support import training_account
from tests.support.training_account import EARLIER, Account, Clock, attempt, run
from training.launcher.deployment import LaunchError

account = training_account.account
clock = training_account.clock
RUN = EARLIER["run_id"]


def key(machine: str) -> str:
    return f"runs/{RUN}/logs/{machine}.log"


def test_each_machine_has_its_part(account: Account, capsys: pytest.CaptureFixture[str]) -> None:
    account.add_run("failed", attempt("i-2"), attempt("i-1"))
    account.put(key("i-0"), "never begins\n")
    account.put(key("i-2"), "boots\nleaves\n")
    account.put(key("i-1"), "boots again\n")
    assert run("logs")
    assert capsys.readouterr().out == (
        "== i-2\nboots\nleaves\n== i-1\nboots again\n== i-0\nnever begins\n"
    )


def test_what_is_added_is_printed_until_the_run_ends(
    account: Account, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    record = account.at_work()
    account.put(key("i-1"), "boot\n")

    def meanwhile() -> None:
        if clock.sleeps == 2:
            account.put(key("i-1"), "boot\ntrain ä\n")
        if clock.sleeps == 4:
            account.put(key("i-1"), "boot\ntrain ä\nend\n")
            record.set_status("succeeded", "", [])

    clock.meanwhile = meanwhile
    run("logs", "--follow")
    assert capsys.readouterr().out == "== i-1\nboot\ntrain ä\nend\n"
    assert clock.sleeps == 4


def test_a_run_without_a_log_says_so(account: Account) -> None:
    account.add_run("requested")
    with pytest.raises(LaunchError, match=f"no machine of run {RUN} has stored a log yet"):
        run("logs")
