"""The boot script in bash, with programs that only note how they were called."""

import io
import json
import os
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from common.files import ROOT
from infra.train_stack import boot_script

SCRIPT = ROOT / "infra" / "user_data.sh"
LIMIT = 16 * 1024  # bytes, EC2's

VARIABLES = {
    "BUCKET": "bins",
    "TOPIC_ARN": "arn:topic",
    "LOG_GROUP": "/training",
}
GROUP_TO_ZERO = (
    "aws autoscaling set-desired-capacity --auto-scaling-group-name trainers --desired-capacity 0"
)
POWER_OFF = "shutdown -h now"

# `python3.11 -m pip --version` fails.
NO_PIP = 'python3.11() { [ $# -ne 3 ] && command python3.11 "$@"; }\n'

# Notes its call; fails when it contains $FAILING; `aws s3 cp` copies from the folder $S3.
PROGRAM = """#!/bin/bash
call="$(basename "$0") $*"
echo "$call" >> "$CALLS"
echo "${call%% *}" >> "$S3/${UNIT:+in-}unit-calls"
[[ "$call" != "aws "* ]] || echo "PYTHONPATH=$PYTHONPATH" >> "$S3/aws-paths"
if [ -n "$FAILING" ] && [[ "$call" == *"$FAILING"* ]]; then
  [ "$(grep -cF -- "$FAILING" "$CALLS")" -le "$FAILURES" ] && exit 1
fi
[ -z "$TERMINATED" ] || [[ "$call" != *"$TERMINATED"* ]] || kill -TERM "$PPID" "$$"
case "$call" in
  "systemd-run "*) while [ "${1#--}" != "$1" ]; do shift; done
    UNIT=1 "$@" > "$S3/unit" 2>&1; cat "$S3/unit"; exit 0 ;;
  *"-m training.machine"*) pwd > "$S3/where"; echo "$PYTHONPATH" >> "$S3/where"
    eval "$TRAINING_DOES"; exit "$TRAINING" ;;
  "aws s3 cp"*" machine.log "*) cat machine.log > "$S3/machine.log" ;;
  "aws logs put-log-events"*) echo "${*: -1}" > "$S3/events.json" ;;
  "aws s3 cp"*"/control/current.json "*) cp "$S3/current.json" current.json ;;
  "aws s3 cp"*"/code.tar.gz "*) cp "$S3/code.tar.gz" code.tar.gz ;;
esac
echo "$call" >> "$S3/done"
"""


@dataclass
class Boot:
    """A machine's boot, in a folder."""

    folder: Path
    calls: list[str]
    output: str

    def names(self, *programs: str) -> list[str]:
        return [call for call in self.calls if call.split()[0] in programs]

    @property
    def log(self) -> str:
        """What arrived in the bucket."""
        return (self.folder / "s3" / "machine.log").read_text()

    @property
    def cloudwatch(self) -> str:
        """What arrived in CloudWatch."""
        [event] = json.loads((self.folder / "s3" / "events.json").read_text())
        assert event["timestamp"] > 1.7e12  # milliseconds
        return str(event["message"])


def archive() -> bytes:
    """code.tar.gz with one file."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        tar.addfile(tarfile.TarInfo("spot.py"))
    return content.getvalue()


def boot(
    folder: Path,
    *,
    training: int = 0,
    failing: str = "",
    failures: int = 99,
    current: str = json.dumps({"run_id": "r1", "runtime": "runtime/a/"}),
    code: bytes | None = None,
    training_does: str = "",
    before: str = "",
    groups: str = "trainers",
    terminated_at: str = "",
) -> Boot:
    """Run the script; calls that contain `failing` fail, the first `failures` of them, and a call
    that contains `terminated_at` brings SIGTERM."""
    programs, s3 = folder / "bin", folder / "s3"
    for new in (programs, s3):
        new.mkdir()
    for name in ("aws", "dnf", "python3.11", "shutdown", "sleep", "systemd-run"):
        (programs / name).write_text(PROGRAM)
        (programs / name).chmod(0o755)
    (programs / "python3").symlink_to(sys.executable)
    (s3 / "current.json").write_text(current)
    (s3 / "code.tar.gz").write_bytes(archive() if code is None else code)
    calls, script = folder / "calls", folder / "part-001"
    script.write_text(before + boot_script(VARIABLES | {"GROUP_NAMES": groups}))
    done = subprocess.run(
        ["bash", script],
        env={
            "PATH": f"{programs}:{os.defpath}",
            "WORK": str(folder / "work"),
            "INSTANCE_ID": "i-1",
            "CALLS": str(calls),
            "S3": str(s3),
            "TRAINING": str(training),
            "TRAINING_DOES": training_does,
            "FAILING": failing,
            "FAILURES": str(failures),
            "TERMINATED": terminated_at,
        },
        capture_output=True,
        text=True,
        errors="replace",
        timeout=600,
    )
    return Boot(folder, calls.read_text().splitlines(), done.stdout + done.stderr)


def test_the_script_is_valid_bash_and_fits_with_its_header() -> None:
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    variables = {f"VARIABLE_{number}": "x" * 100 for number in range(10)}
    assert len(boot_script(variables).encode()) < LIMIT


def test_shellcheck_finds_nothing() -> None:
    shellcheck = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([shellcheck, "--severity=style", SCRIPT], capture_output=True, text=True)
    assert done.stdout == ""
    assert done.returncode == 0


def test_a_machine_fetches_run_code_and_wheels_and_trains(tmp_path: Path) -> None:
    booted = boot(tmp_path)
    fetched = [call.split()[-2:] for call in booted.names("aws") if "s3 cp" in call]
    assert fetched == [
        ["s3://bins/control/current.json", "current.json"],
        ["s3://bins/runs/r1/code.tar.gz", "code.tar.gz"],
        ["s3://bins/runtime/a/", "wheels"],
        ["machine.log", "s3://bins/runs/r1/logs/i-1.log"],
    ]
    work = tmp_path / "work"
    assert (work / "code" / "spot.py").exists()
    _, install, train = booted.names("python3.11")
    assert "--no-index --no-deps --require-hashes" in install
    assert train == f"python3.11 -m training.machine --work {work}"
    where, python_path = (tmp_path / "s3" / "where").read_text().splitlines()
    assert where == str(work)
    assert python_path == f"{work}/runtime:{work}/code"


def test_an_image_with_a_python_but_no_pip_gets_it(tmp_path: Path) -> None:
    (installed,) = boot(tmp_path, failing="python3.11 -m pip --version").names("dnf")
    assert installed == "dnf install -y -q python3.11 python3.11-pip"


def test_nothing_is_installed_where_python_is_already(tmp_path: Path) -> None:
    assert boot(tmp_path).names("dnf") == []


def test_everything_runs_in_a_unit_that_a_shutdown_tells_while_there_is_a_network(
    tmp_path: Path,
) -> None:
    booted = boot(tmp_path)
    assert (tmp_path / "s3" / "unit-calls").read_text() == "systemd-run\n"
    assert booted.calls[-1] == POWER_OFF
    (unit,) = booted.names("systemd-run")
    properties = [word for word in unit.split() if word.startswith("--property=")]
    assert properties[:3] == [
        "--property=After=network.target",
        "--property=TimeoutStopSec=100",
        "--property=OOMPolicy=continue",
    ]
    assert "KillMode" not in unit  # the default is all of the unit


def test_without_a_unit_the_script_does_the_work_itself(tmp_path: Path) -> None:
    booted = boot(tmp_path, failing="systemd-run")
    assert not (tmp_path / "s3" / "in-unit-calls").exists()
    assert booted.calls[-2:] == [GROUP_TO_ZERO, POWER_OFF]
    assert len([call for call in booted.calls if "training.machine" in call]) == 1


@pytest.mark.parametrize(
    ("failing", "failures"),
    [
        ("dnf install", 2),
        ("control/current.json", 1),
        ("code.tar.gz", 3),
        ("runtime/a/", 3),
    ],
)
def test_what_fails_at_first_is_tried_again_after_a_pause(
    tmp_path: Path, failing: str, failures: int
) -> None:
    booted = boot(tmp_path, failing=failing, failures=failures, before=NO_PIP)
    assert booted.calls.count("sleep 30") == failures
    assert booted.output.count("boot: trying again: ") == failures
    assert len([call for call in booted.calls if failing in call]) == failures + 1
    assert any("training.machine" in call for call in booted.calls)


def test_a_lock_that_stays_ends_the_spending(tmp_path: Path) -> None:
    booted = boot(tmp_path, failing="dnf install", before=NO_PIP)
    assert len(booted.names("dnf")) == 4
    assert booted.calls[-2:] == [GROUP_TO_ZERO, POWER_OFF]


def test_the_machine_s_own_aws_asks_more_than_once_for_its_credentials(tmp_path: Path) -> None:
    asked = 'echo "$AWS_METADATA_SERVICE_NUM_ATTEMPTS for $AWS_METADATA_SERVICE_TIMEOUT s"'
    assert "5 for 5 s" in boot(tmp_path, training_does=asked).output


def told(booted: "Boot") -> list[str]:
    return [call for call in booted.names("aws") if "sns publish --topic-arn arn:topic" in call]


@pytest.mark.parametrize(("code", "messages"), [(0, 0), (75, 0), (143, 0), (1, 1), (137, 1)])
def test_only_an_end_that_nobody_announced_is_announced(
    tmp_path: Path, code: int, messages: int
) -> None:
    assert len(told(boot(tmp_path, training=code))) == messages


def test_a_failing_boot_is_announced_with_where_its_log_is(tmp_path: Path) -> None:
    (message,) = told(boot(tmp_path, failing="code.tar.gz"))
    assert message.endswith("See s3://bins/runs/r1/logs/i-1.log")


def test_a_topic_that_refuses_is_no_reason_to_go_on_spending(tmp_path: Path) -> None:
    assert boot(tmp_path, training=1, failing="sns publish").calls[-2:] == [
        GROUP_TO_ZERO,
        POWER_OFF,
    ]


def test_the_machine_s_own_aws_does_not_see_the_wheels(tmp_path: Path) -> None:
    boot(tmp_path)
    assert set((tmp_path / "s3" / "aws-paths").read_text().splitlines()) == {"PYTHONPATH="}


@pytest.mark.parametrize("code", [0, 1, 137])
def test_after_the_end_of_a_run_the_group_is_at_zero_before_the_machine_is_off(
    tmp_path: Path, code: int
) -> None:
    booted = boot(tmp_path, training=code)
    assert booted.calls[-2:] == [GROUP_TO_ZERO, POWER_OFF]
    assert booted.calls.count(GROUP_TO_ZERO) == booted.calls.count(POWER_OFF) == 1


@pytest.mark.parametrize("code", [75, 143])
def test_an_interrupted_machine_leaves_the_group_to_the_next_one(tmp_path: Path, code: int) -> None:
    booted = boot(tmp_path, training=code)
    assert booted.calls[-1] == POWER_OFF
    assert GROUP_TO_ZERO not in booted.calls


@pytest.mark.parametrize(
    ("failing", "run_id"),
    [
        ("control/current.json", "none"),
        ("code.tar.gz", "r1"),
        ("runtime/a/", "r1"),
        ("-m pip install", "r1"),
    ],
)
def test_a_boot_step_that_fails_ends_the_spending(
    tmp_path: Path, failing: str, run_id: str
) -> None:
    booted = boot(tmp_path, failing=failing)
    log, *end = booted.calls[-3:]
    assert log.endswith(f"machine.log s3://bins/runs/{run_id}/logs/i-1.log")
    assert end == [GROUP_TO_ZERO, POWER_OFF]
    assert not [call for call in booted.calls if "training.machine" in call]
    assert "boot: nothing more to do here" in booted.output


@pytest.mark.parametrize("current", ["{", "{}", '{"run_id": "r1"}'])
def test_a_damaged_pointer_to_the_run_ends_the_spending(tmp_path: Path, current: str) -> None:
    booted = boot(tmp_path, current=current)
    assert booted.calls[-2:] == [GROUP_TO_ZERO, POWER_OFF]
    assert not [call for call in booted.calls if "training.machine" in call]


def test_code_that_cannot_be_unpacked_ends_the_spending(tmp_path: Path) -> None:
    booted = boot(tmp_path, code=b"cut off")
    assert booted.calls[-2:] == [GROUP_TO_ZERO, POWER_OFF]
    assert not [call for call in booted.calls if "training.machine" in call]


def test_the_log_in_the_bucket_says_how_far_the_boot_came(tmp_path: Path) -> None:
    booted = boot(tmp_path, failing="-m pip install")
    for log in (booted.log, booted.cloudwatch):
        assert "boot: run r1, code and wheels" in log
        assert "boot: training" not in log
    (sent,) = (call for call in booted.calls if "put-log-events" in call)
    assert "--log-group-name /training --log-stream-name r1/i-1" in sent


def test_the_end_of_a_log_is_sent_however_long_it_is(tmp_path: Path) -> None:
    booted = boot(tmp_path, training=1, training_does="seq 100000; printf 'broken text \\377\\n'")
    assert "99999\n100000\nbroken text" in booted.cloudwatch
    assert len(booted.cloudwatch) < 2000


@pytest.mark.parametrize("training", [0, 75, 1])
def test_every_ending_keeps_the_log(tmp_path: Path, training: int) -> None:
    assert "boot: training" in boot(tmp_path, training=training).log


def test_a_machine_that_does_not_know_its_name_still_ends_the_spending(tmp_path: Path) -> None:
    booted = boot(tmp_path, failing="code.tar.gz", before="unset INSTANCE_ID\n")
    assert booted.calls[-2:] == [GROUP_TO_ZERO, POWER_OFF]
    assert any("runs/r1/logs/unknown.log" in call for call in booted.calls)


def test_a_shutdown_that_tells_the_script_alone_reaches_training(tmp_path: Path) -> None:
    shell = "trap 'exit 75' TERM; kill -TERM $PPID; while :; do /bin/sleep 0.01; done"
    booted = boot(tmp_path, training_does=shell)
    assert "boot: leaving the run to the next machine" in booted.output
    assert GROUP_TO_ZERO not in booted.calls


def test_a_shutdown_before_training_spot_listens_is_an_interruption(tmp_path: Path) -> None:
    booted = boot(tmp_path, training_does="exec python3 -c 'import os; os.kill(os.getpid(), 15)'")
    assert "boot: leaving the run to the next machine" in booted.output
    assert GROUP_TO_ZERO not in booted.calls
    assert not told(booted)


def test_a_log_that_cannot_be_stored_is_no_reason_to_go_on_spending(tmp_path: Path) -> None:
    booted = boot(tmp_path, training=1, failing="log")
    assert booted.calls[-2:] == [GROUP_TO_ZERO, POWER_OFF]


def test_an_end_takes_the_fallback_with_it(tmp_path: Path) -> None:
    booted = boot(tmp_path, groups="trainers reserve", failing="delete-scheduled", failures=9)
    assert booted.calls[-4:] == [
        "aws autoscaling delete-scheduled-action --auto-scaling-group-name reserve "
        "--scheduled-action-name fallback",
        GROUP_TO_ZERO.replace("trainers", "reserve"),
        GROUP_TO_ZERO,
        POWER_OFF,
    ]


def test_a_group_that_refuses_for_ever_keeps_no_machine_in_the_other(tmp_path: Path) -> None:
    """It may be gone: deployed again with another `purchase` while a run was at work."""
    booted = boot(tmp_path, groups="trainers reserve", failing="reserve --desired", failures=2)
    to_zero = [call for call in booted.calls if "set-desired-capacity" in call]
    gone = GROUP_TO_ZERO.replace("trainers", "reserve")
    assert to_zero == [gone, GROUP_TO_ZERO, gone, gone]


def test_the_end_survives_the_machine_s_own_shutdown(tmp_path: Path) -> None:
    booted = boot(tmp_path, groups="trainers reserve", terminated_at="--desired-capacity 0")
    assert booted.calls[-2:] == [GROUP_TO_ZERO, POWER_OFF]
    done = (tmp_path / "s3" / "done").read_text().splitlines()
    assert {GROUP_TO_ZERO, GROUP_TO_ZERO.replace("trainers", "reserve")} <= set(done)


def test_a_refused_end_is_asked_for_again(tmp_path: Path) -> None:
    booted = boot(tmp_path, failing="set-desired-capacity", failures=3)
    wait = "sleep 60"
    assert booted.calls[-8:] == [*[GROUP_TO_ZERO, wait] * 3, GROUP_TO_ZERO, POWER_OFF]
