"""The user data of TrainStack on a machine with real cloud-init and systemd, in a container.

`make test-machine`. Stand-ins are `aws`, `dnf` and training.machine. It is Debian's
cloud-init, whose units are those of Amazon Linux 2023 in what matters here: user data runs once
for an instance, as a child of cloud-final.service.
"""

import io
import shutil
import subprocess
import tarfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from rehearsal.aws.waiting import wait_until
from tests.support.debian import install_debian, need_root_and
from tests.support.synthesized import Template

PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "cloud-init", "ca-certificates"),
    *("python3", "python3-pip", "python3-cffi-backend"),  # cryptography's own, left out otherwise
)
SEED = "var/lib/cloud/seed/nocloud"
# Notes its call; `aws s3 cp` copies from /s3, as far as there is something.
AWS = """#!/bin/bash
echo "aws $*" >> /s3/calls
case "$*" in
  "s3 cp"*" machine.log "*) cp machine.log /s3/machine.log ;;
  "s3 cp"*"/control/current.json "*) cp /s3/current.json current.json ;;
  "s3 cp"*"/code.tar.gz "*) cp /s3/code.tar.gz code.tar.gz ;;
  "s3 cp --only-show-errors --recursive"*) touch wheels/requirements.txt ;;
esac
"""
DNF = """#!/bin/bash
echo "dnf $*" >> /s3/calls
"""
SPOT = """
import os, signal, sys, time
from pathlib import Path

Path("/s3/environment").write_text("\\n".join(sorted(os.environ)))
Path("/s3/unit").write_text(Path("/proc/self/cgroup").read_text())

def leave(*_):
    time.sleep(3)  # a last checkpoint, and its upload
    Path("/s3/left").touch()
    sys.exit(75)

signal.signal(signal.SIGTERM, leave)
Path("/s3/at-work").touch()
while not Path("/s3/finish").exists():
    time.sleep(0.1)
"""


@dataclass
class Booted:
    """A machine, from outside."""

    root: Path
    user_data: str
    console: Path

    def file(self, name: str) -> Path:
        return self.root / "s3" / name

    def calls(self) -> list[str]:
        return self.file("calls").read_text().splitlines()

    def new_instance(self) -> None:
        """As from its launch template: an id that cloud-init has not seen, and nothing on disk."""
        for folder in (self.root / "s3", self.root / "opt/bin-counter"):
            shutil.rmtree(folder, ignore_errors=True)
        self.file("").mkdir()
        self.file("current.json").write_text('{"run_id": "r1", "runtime": "runtime/a/"}')
        self.file("code.tar.gz").write_bytes(code())
        seed = self.root / SEED
        seed.mkdir(parents=True, exist_ok=True)
        (seed / "meta-data").write_text(f"instance-id: i-{uuid.uuid4().hex}\n")
        (seed / "user-data").write_text(self.user_data)

    def boot(self, until: Callable[[], bool]) -> psutil.Popen:
        """Returns when `until` holds."""
        for before in self._finished():
            before.unlink()
        with self.console.open("w") as console:
            machine = psutil.Popen(
                [
                    *("systemd-nspawn", "--quiet", "--boot", "--directory", self.root),
                    *("--register=no", "--keep-unit", "--private-network"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
            )
        try:
            wait_until(until, machine, name="the machine", log=self.console)
        except BaseException:
            machine.kill()
            raise
        return machine

    def cloud_init_is_done(self) -> bool:
        return bool(self._finished())

    def _finished(self) -> list[Path]:
        return list(self.root.glob("var/lib/cloud/instances/*/boot-finished"))

    def at_work(self) -> bool:
        return self.file("at-work").exists()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    need_root_and(debootstrap="debootstrap", **{"systemd-nspawn": "systemd-container"})
    root = tmp_path_factory.mktemp("machine") / "root"
    install_debian(root, *PACKAGES)
    (root / "etc/cloud/cloud.cfg.d/90_source.cfg").write_text("datasource_list: [NoCloud, None]\n")
    for name, program in {"aws": AWS, "dnf": DNF}.items():
        (root / "usr/bin" / name).write_text(program)
        (root / "usr/bin" / name).chmod(0o755)
    yield root
    shutil.rmtree(root)


@pytest.fixture
def machine(root: Path, stacks: dict[str, Template], tmp_path: Path) -> Booted:
    template = stacks["TrainStack"].only("AWS::EC2::LaunchTemplate")
    user_data = template["LaunchTemplateData"]["UserData"]
    booted = Booted(root, user_data, tmp_path / "console.log")
    booted.new_instance()
    return booted


def code() -> bytes:
    """code.tar.gz with the stand-in for training.machine."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        spot = tarfile.TarInfo("training/machine/__main__.py")
        spot.size = len(SPOT)
        tar.addfile(spot, io.BytesIO(SPOT.encode()))
    return content.getvalue()


@pytest.mark.slow
def test_a_run_that_is_over_ends_the_machine_and_is_not_begun_again(machine: Booted) -> None:
    running = machine.boot(until=machine.at_work)
    machine.file("finish").touch()
    running.wait()  # the script powers it off
    assert machine.calls()[-3:] == [
        f"aws autoscaling {words}"
        for words in (
            "delete-scheduled-action --auto-scaling-group-name bin-counter-trainer-on-demand "
            "--scheduled-action-name fallback",
            "set-desired-capacity --auto-scaling-group-name bin-counter-trainer-on-demand "
            "--desired-capacity 0",
            "set-desired-capacity --auto-scaling-group-name bin-counter-trainer "
            "--desired-capacity 0",
        )
    ]
    calls = machine.calls()
    again = machine.boot(until=machine.cloud_init_is_done)
    again.terminate()  # for systemd-nspawn: an orderly shutdown
    again.wait()
    assert machine.calls() == calls


@pytest.mark.slow
def test_the_work_runs_in_a_unit_of_its_own_and_needs_no_home(machine: Booted) -> None:
    running = machine.boot(until=machine.at_work)
    machine.file("finish").touch()
    running.wait()
    assert "/system.slice/bin-counter.service" in machine.file("unit").read_text()
    environment = machine.file("environment").read_text().split()
    assert "HOME" not in environment
    assert {"BUCKET", "GROUP_NAMES", "TOPIC_ARN", "BOOT_STARTED", "TMPDIR"} <= set(environment)
    assert "boot: training" in machine.file("machine.log").read_text()


@pytest.mark.slow
def test_a_shutdown_leaves_the_time_for_a_last_checkpoint_and_the_log(machine: Booted) -> None:
    running = machine.boot(until=machine.at_work)
    running.terminate()
    running.wait()
    assert machine.file("left").exists(), "training.machine was told, and came to its end"
    assert "boot: leaving the run to the next machine" in machine.file("machine.log").read_text()
    assert not [call for call in machine.calls() if "set-desired-capacity" in call]
