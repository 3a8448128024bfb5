"""One rehearsed training machine: runs the user data that EC2 would run, in a folder of its own.

The folder stands for the machine's disk. Commands that need root on a real machine are replaced by
small scripts at the front of PATH; credentials come only from the metadata service.
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
HOLD_SECONDS = 0.005  # an epoch of a small head takes three times as long
SHIMS = {
    # Part of the machine image, here at the version of this environment.
    "python3": f'exec "{sys.executable}" "$@"',
    # Missing until dnf has installed it; the first time another process holds rpm's lock.
    "python3.11": f'[ -e "$MACHINE_DISK/installed" ] && exec "{sys.executable}" "$@"; exit 127',
    "dnf": """if mkdir "$MACHINE_DISK/rpm-lock" 2> /dev/null; then
  echo "can't create transaction lock on /var/lib/rpm/.rpm.lock" >&2
  exit 1
fi
touch "$MACHINE_DISK/installed"
""",
    "aws": f'exec "{Path(sys.executable).with_name("aws")}" "$@"',
    # Without systemd the unit is a child process, and the machine is on for as long as it runs.
    "systemd-run": 'while [ "${1#--}" != "$1" ]; do shift; done; "$@"; exit 0',
    # Would end the real machine.
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
        self.hold_at = ""  # the event at which training is frozen until the notice is read
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
        """Whether training has reached `event`: "features:N" chunks stored, "epoch:N" measured, or
        "says:TEXT" printed on the console."""
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
        with suppress(psutil.NoSuchProcess):  # the machine has ended meanwhile
            for process in psutil.Process(self.process.pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    if "training.train" in process.cmdline():
                        found.append(process)
        return found

    def interrupt(self, notice_seconds: float) -> None:
        """Give the spot interruption notice; returns once the machine has read it or its time is
        over.

        Training is frozen until then, as here it may end before the notice arrives.
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
        """Freeze training as soon as it reaches `hold_at`."""
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
        """Freeze everything on the machine, so that it prints nothing any more."""
        self.hung = True
        self._processes.freeze(self.process)

    def wake(self) -> None:
        """Let everything continue where it was frozen."""
        self.hung = False
        self._processes.thaw(self.process)

    def vanish(self) -> None:
        """Kill everything on the machine at once."""
        self._processes.kill(self.process)

    def end(self, seconds: float = END_SECONDS) -> None:
        """Shut the machine down: SIGTERM to everything on it, and SIGKILL after `seconds`."""
        if self.hung:
            self._processes.kill(self.process)
        self._processes.end(self.process, seconds)
        self._imds.shutdown()
        self._imds.server_close()
