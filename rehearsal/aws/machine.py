"""One rehearsed training machine: runs the user data that EC2 would run, in a folder of its own.

The folder stands for the machine's disk. Commands that only root of a real machine has are small
stand-ins at the front of PATH; credentials come from the metadata service alone.
"""

import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psutil

from rehearsal.aws.metadata_service import Metadata, start_imds
from rehearsal.aws.processes import END_SECONDS, Processes

LOOK_SECONDS = 0.1
HOLD_SECONDS = 0.005  # a small head's epoch takes three times as long
SHIMS = {
    # What the machine image brings along, at the version of this environment.
    "python3": f'exec "{sys.executable}" "$@"',
    # What it does not, until dnf has installed it; the first time somebody else holds rpm's lock.
    "python3.11": f'[ -e "$MACHINE_DISK/installed" ] && exec "{sys.executable}" "$@"; exit 127',
    "dnf": """if mkdir "$MACHINE_DISK/rpm-lock" 2> /dev/null; then
  echo "can't create transaction lock on /var/lib/rpm/.rpm.lock" >&2
  exit 1
fi
touch "$MACHINE_DISK/installed"
""",
    "aws": f'exec "{Path(sys.executable).with_name("aws")}" "$@"',
    # There is no systemd: the unit is a child, and the machine is on for as long as it runs.
    "systemd-run": 'while [ "${1#--}" != "$1" ]; do shift; done; "$@"; exit 0',
    # What would end the machine.
    "shutdown": 'touch "$MACHINE_DISK/powered-off"',
}


class Machine:
    """A machine from its boot to its end."""

    def __init__(
        self,
        *,
        processes: Processes,
        disk: Path,
        user_data: str,
        metadata: Metadata,
        endpoint: str,
        settings: Mapping[str, str],
    ) -> None:
        self.disk = disk
        self.metadata = metadata
        self.console = disk / "console.log"
        self.hung = False
        self.hold_at = ""  # the event at which training is frozen, until a notice is read
        self._holding = threading.Lock()
        self._processes = processes
        self._imds = start_imds(metadata)
        programs = disk / "bin"
        for folder in (programs, disk / "root", disk / "tmp"):
            folder.mkdir(parents=True)
        for name, line in SHIMS.items():
            (programs / name).write_text(f"#!/bin/sh\n{line}\n")
            (programs / name).chmod(0o755)
        script = disk / "user-data.sh"
        script.write_text(user_data)
        self.process = processes.start(
            ["bash", script],
            environment={
                "PATH": f"{programs}:/usr/local/bin:/usr/bin:/bin",
                "HOME": str(disk / "root"),
                "TMPDIR": str(disk / "tmp"),
                "MACHINE_DISK": str(disk),
                "WORK": str(self.work),
                "INSTANCE_ID": metadata.instance_id,
                "AWS_ENDPOINT_URL": endpoint,
                "AWS_EC2_METADATA_SERVICE_ENDPOINT": f"http://127.0.0.1:{self._imds.server_port}",
                **settings,
            },
            log=self.console,
            folder=disk,
        )
        threading.Thread(target=self._hold, daemon=True).start()

    @property
    def work(self) -> Path:
        return self.disk / "opt" / "bin-counter"

    @property
    def powered_off(self) -> bool:
        return (self.disk / "powered-off").exists()

    def reached(self, event: str) -> bool:
        """Whether training got to `event`: "features:N" chunks kept, "epoch:N" measured, or
        "says:TEXT" on the console."""
        kind, _, number = event.partition(":")
        if kind == "says":
            return number in self.console.read_text(errors="replace")
        if kind == "features":
            done = len(list(self.work.glob("checkpoints/features-*/train-*.npy")))
        else:
            metrics = self.work / "output" / "metrics.jsonl"
            done = len(metrics.read_text().splitlines()) if metrics.exists() else 0
        return done >= int(number)

    def training(self) -> list[psutil.Process]:
        """The processes that run training.train."""
        found = []
        with suppress(psutil.NoSuchProcess):  # the machine has ended in the meantime
            for process in psutil.Process(self.process.pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    if "training.train" in process.cmdline():
                        found.append(process)
        return found

    def interrupt(self, notice_seconds: float) -> None:
        """Give the spot interruption notice, and return once the machine has read it, or its time
        is over.

        Training is frozen until then: here it may take less time than the notice does to arrive.
        """
        with self._holding:
            self.hold_at = ""
            self._freeze_training()
        self.metadata.give_notice(notice_seconds)
        over = time.monotonic() + notice_seconds
        while not self.metadata.notice_seen.wait(LOOK_SECONDS):
            if self.process.poll() is not None or time.monotonic() > over:
                break
        for process in self.training():
            with suppress(psutil.NoSuchProcess):
                process.resume()

    def _hold(self) -> None:
        """Freeze training as soon as it gets to `hold_at`."""
        while self.process.poll() is None:
            with self._holding:
                if self.hold_at and self.reached(self.hold_at):
                    self.hold_at = ""
                    self._freeze_training()
            time.sleep(HOLD_SECONDS)

    def _freeze_training(self) -> None:
        for process in self.training():
            with suppress(psutil.NoSuchProcess):
                process.suspend()

    def hang(self) -> None:
        """Nothing on the machine moves any more, and it says nothing."""
        self.hung = True
        self._processes.freeze(self.process)

    def wake(self) -> None:
        """Everything goes on where it was when the machine hung."""
        self.hung = False
        self._processes.thaw(self.process)

    def vanish(self) -> None:
        """The machine is gone from one moment to the next."""
        self._processes.kill(self.process)

    def end(self, seconds: float = END_SECONDS) -> None:
        """The machine shuts down: all that runs on it is told to end and, after `seconds`, gone."""
        if self.hung:
            self._processes.kill(self.process)
        self._processes.end(self.process, seconds)
        self._imds.shutdown()
        self._imds.server_close()
