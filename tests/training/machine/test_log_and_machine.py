"""A rehearsed machine: its own disk, the role's credentials, an intercepted shutdown."""

import time
from pathlib import Path

import psutil
import pytest

from rehearsal.aws.machine import Machine
from rehearsal.aws.metadata_service import Metadata
from rehearsal.aws.processes import Processes

CREDENTIALS = {
    "Code": "Success",
    "Type": "AWS-HMAC",
    "AccessKeyId": "of-the-role",
    "SecretAccessKey": "x",
    "Token": "y",
    "Expiration": "2999-01-01T00:00:00Z",
    "LastUpdated": "2026-01-01T00:00:00Z",
}


def boot(processes: Processes, disk: Path, user_data: str) -> Machine:
    metadata = Metadata(
        instance_id="i-1",
        instance_type="c7i.large",
        zone="us-east-1a",
        life_cycle="spot",
        role="trainer",
        credentials=lambda: CREDENTIALS,
    )
    return Machine(
        processes=processes,
        disk=disk,
        user_data=user_data,
        metadata=metadata,
        endpoint="http://localhost:1",
        settings={"EXTRA": "1"},
    )


def console(disk: Path, user_data: str) -> str:
    """What the machine prints until it powers off."""
    with Processes(disk.parent / "state") as processes:
        machine = boot(processes, disk, user_data)
        machine.process.wait()
        machine.end()
        return machine.console.read_text()


def test_shutdown_ends_the_machine_and_not_the_computer(tmp_path: Path) -> None:
    with Processes(tmp_path / "state") as processes:
        machine = boot(processes, tmp_path / "disk", "shutdown -h now")
        machine.process.wait()
        assert machine.powered_off
        machine.end()


def test_the_user_s_own_credentials_do_not_reach_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "of-the-user")
    monkeypatch.setenv("AWS_PROFILE", "of-the-user")
    text = console(tmp_path / "disk", "env")
    assert "of-the-user" not in text
    assert "EXTRA=1" in text


def test_credentials_come_from_the_metadata_service(tmp_path: Path) -> None:
    script = (
        'AWS_METADATA_SERVICE_NUM_ATTEMPTS=2 python3 -c "import botocore.session as s; '
        'print(s.get_session().get_credentials().access_key)"'
    )
    assert "of-the-role" in console(tmp_path / "disk", script)


def test_python_3_11_is_there_once_dnf_found_no_lock(tmp_path: Path) -> None:
    script = (
        "for try in 1 2 3; do python3.11 -c 'print(7)' || echo no Python; "
        "dnf install -y -q python3.11 2> /dev/null || echo no lock; done"
    )
    assert console(tmp_path / "disk", script).splitlines() == [
        "no Python",
        "no lock",
        "no Python",
        "7",
    ]


def test_home_and_temporary_files_are_on_the_machine_s_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    text = console(disk, "echo ~; mktemp; pwd; echo $WORK")
    assert all(line.startswith(str(disk)) for line in text.splitlines())


def test_events_are_read_from_what_training_wrote(tmp_path: Path) -> None:
    with Processes(tmp_path / "state") as processes:
        machine = boot(processes, tmp_path / "disk", "sleep 600")
        chunks = machine.work / "checkpoints" / "features-0123"
        chunks.mkdir(parents=True)
        (machine.work / "output").mkdir()
        assert not machine.reached("features:1")
        assert not machine.reached("epoch:1")
        (chunks / "train-00000.npy").touch()
        (machine.work / "output" / "metrics.jsonl").write_text("{}\n{}\n")
        assert machine.reached("features:1")
        assert machine.reached("epoch:2")
        assert not machine.reached("epoch:3")
        machine.console.write_text("boot: training\n")
        assert machine.reached("says:boot: training")
        assert not machine.reached("says:train: epoch 1")
        machine.end()


def test_training_is_frozen_until_the_notice_was_read(tmp_path: Path) -> None:
    # By its name it stands for `python -m training.train`; it starts nothing itself, whose name
    # would be the same for a moment.
    script = "(exec -a training.train sleep 600) & wait"
    with Processes(tmp_path / "state") as processes:
        machine = boot(processes, tmp_path / "disk", script)
        while not machine.training():
            assert machine.process.poll() is None
        (training,) = machine.training()
        seen = []

        def wait(timeout: float) -> bool:
            seen.append(becomes(training, stopped=True))
            return True

        machine.metadata.notice_seen.wait = wait  # type: ignore[method-assign,assignment]
        machine.interrupt(5)
        assert seen == [True]
        assert becomes(training, stopped=False)
        machine.end()
    assert not psutil.pid_exists(training.pid)


def becomes(process: psutil.Process, *, stopped: bool) -> bool:
    """Whether `process` is frozen, or runs, within some seconds of the signal."""
    end = time.monotonic() + 600
    while time.monotonic() < end:
        if (process.status() == psutil.STATUS_STOPPED) is stopped:
            return True
    return False


def test_ending_a_machine_ends_what_runs_on_it(tmp_path: Path) -> None:
    with Processes(tmp_path / "state") as processes:
        machine = boot(processes, tmp_path / "disk", "sleep 600")
        machine.end()
        assert machine.process.poll() is not None


NOTES_SIGTERM = "trap 'touch {0}/heard' TERM; touch {0}/ready; while :; do :; done"


def ready(processes: Processes, folder: Path) -> Machine:
    """A machine that notes any SIGTERM."""
    machine = boot(processes, folder / "disk", NOTES_SIGTERM.format(folder))
    while not (folder / "ready").exists():
        assert machine.process.poll() is None
    return machine


def test_a_machine_that_vanishes_has_no_last_words(tmp_path: Path) -> None:
    with Processes(tmp_path / "state") as processes:
        machine = ready(processes, tmp_path)
        machine.vanish()
        assert machine.process.poll() is not None
        machine.end()
    assert not (tmp_path / "heard").exists()


def test_a_machine_that_hangs_hears_nothing_until_it_wakes(tmp_path: Path) -> None:
    with Processes(tmp_path / "state") as processes:
        machine = ready(processes, tmp_path)
        process = psutil.Process(machine.process.pid)
        machine.hang()
        assert becomes(process, stopped=True)
        machine.wake()
        assert becomes(process, stopped=False)
        machine.hang()
        machine.end()
    assert not process.is_running()
    assert not (tmp_path / "heard").exists()
