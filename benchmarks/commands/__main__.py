"""How long `make setup`, `make demo` and `make test` take, each in a fresh clone.

One line of the table in benchmarks/commands/README.md is printed for each command. Nothing else
may run meanwhile. This needs git, taskset for --crowded, and, for `setup`, 20 GB of disk and the
network.

    python -m benchmarks.commands setup --repeats 3
    python -m benchmarks.commands demo synthetic --repeats 3
    python -m benchmarks.commands demo synthetic test --repeats 3 --crowded
"""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from benchmarks.measure import describe_machine
from common.command import interruptible
from common.files import ROOT
from common.flags import PositiveInt, Switch, command_line

LOOP = [sys.executable, "-c", "while True: pass"]
What = Literal["setup", "demo", "synthetic", "test", "test-fast"]
COMMANDS: Mapping[str, Sequence[str]] = {
    "demo": ("make", "demo"),
    "synthetic": (".venv/bin/python", "-m", "rehearsal.demo", "--synthetic"),
    "test": ("make", "test"),
    "test-fast": ("make", "test-fast"),
}


APP = command_line("python -m benchmarks.commands", __doc__)


@dataclass(frozen=True)
class Measured:
    """One command, from its start to its end."""

    seconds: float
    cpu_seconds: float  # of all its processes
    code: int


def measure(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Measured:
    """Run `command`; its output goes to a log in `folder`."""
    before, begun = _cpu_seconds(), time.monotonic()
    with (folder / "benchmark.log").open("w") as log:
        code = subprocess.run(
            command, cwd=folder, env=environment, stdout=log, stderr=log, check=False
        ).returncode
    return Measured(time.monotonic() - begun, _cpu_seconds() - before, code)


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def with_empty_caches(folder: Path) -> dict[str, str]:
    """The environment of an installation with empty caches that knows PyPI alone."""
    settings = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "UV_"))}
    cert = {k: v for k, v in os.environ.items() if k == "PIP_CERT"}
    caches = {
        "XDG_CACHE_HOME": str(folder / "cache"),
        "NPM_CONFIG_CACHE": str(folder / "cache/npm"),
    }
    return settings | cert | caches | {"PIP_CONFIG_FILE": os.devnull}


@contextmanager
def fresh_clone() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "clone"
        subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
        shared = ROOT.parent / "shared"  # where the real photos are, if there are any
        if shared.is_dir():
            (folder.parent / "shared").symlink_to(shared)
        yield folder


def setup_by_uv() -> Measured:
    with fresh_clone() as folder:
        return measure(["make", "setup"], folder, with_empty_caches(folder))


def setup_by_pip() -> Measured:
    """The same Python packages, without checkov and the CDK command line."""
    with fresh_clone() as folder:
        environment = with_empty_caches(folder)
        subprocess.run([sys.executable, "-m", "venv", folder / ".venv"], check=True)
        pip = [str(folder / ".venv/bin/python"), "-m", "pip", "--disable-pip-version-check"]
        install = [*pip, "install", "--quiet", "--requirement", "requirements.txt"]
        return measure(install, folder, environment)


def after_setup(name: str, crowded: bool) -> Measured:
    with fresh_clone() as folder:
        subprocess.run(["make", "setup"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        taskset = ["taskset", "-c", "0"] if crowded else []
        loops = [subprocess.Popen([*taskset, *LOOP]) for _ in range(2 if crowded else 0)]
        try:
            return measure([*taskset, *COMMANDS[name]], folder, os.environ)
        finally:
            for loop in loops:
                loop.kill()
                loop.wait()


def row(name: str, results: Sequence[Measured]) -> str:
    """Name, median, least and most seconds, CPU seconds, and how many runs succeeded."""
    seconds = [result.seconds for result in results]
    cpu = statistics.median(result.cpu_seconds for result in results)
    well = sum(result.code == 0 for result in results)
    spread = f"{min(seconds):.0f} to {max(seconds):.0f}"
    middle = statistics.median(seconds)
    return f"| {name} | {middle:.0f} | {spread} | {cpu:.0f} | {well} of {len(results)} |"


@APP.default
def compare(what: list[What], /, *, repeats: PositiveInt = 3, crowded: Switch = False) -> None:
    """Measure each command.

    Parameters
    ----------
    what
        The commands to measure; setup is measured next to pip, both with empty caches.
    repeats
        Number of runs of each command.
    crowded
        Hold all of it to one core, which two endless loops share.
    """
    here = describe_machine()
    results: dict[str, list[Measured]] = {}
    for _ in tqdm(range(repeats), desc="repeats"):
        for name in what:
            if name == "setup":
                results.setdefault("make setup", []).append(setup_by_uv())
                results.setdefault("pip install", []).append(setup_by_pip())
            else:
                results.setdefault(name, []).append(after_setup(name, crowded))
            for measured in results:
                print(row(measured, results[measured]), flush=True)
    print(f"\n{here} {repeats} repeats{', crowded' if crowded else ''}")


@interruptible()
def main(arguments: list[str] | None = None) -> None:
    APP(arguments)


if __name__ == "__main__":
    main()
