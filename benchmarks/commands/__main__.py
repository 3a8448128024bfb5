"""How long `make setup`, `make demo` and `make test` take, each in a fresh clone.

    python -m benchmarks.commands setup --repeats 3          # beside pip, with empty caches
    python -m benchmarks.commands demo synthetic --repeats 3
    python -m benchmarks.commands demo synthetic test --repeats 3 --crowded

Prints a row of benchmarks/commands/README.md for each command. Nothing else may run meanwhile.
--crowded holds all of it to one core, beside two endless loops on the same core. Needs git,
taskset for --crowded, and, for `setup`, 20 GB of disk and the network.
"""

import argparse
import os
import platform
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

import psutil
from tqdm import tqdm

from common.files import ROOT

LOOP = [sys.executable, "-c", "while True: pass"]
MAKE: Mapping[str, Sequence[str]] = {
    "demo": ("make", "demo"),
    "synthetic": (".venv/bin/python", "-m", "rehearsal.demo", "--synthetic"),
    "test": ("make", "test"),
    "test-fast": ("make", "test-fast"),
}


@dataclass(frozen=True)
class Measured:
    """One command, from its start to its end."""

    seconds: float
    cpu_seconds: float  # of all its processes
    code: int


def measure(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Measured:
    """Run `command`; what it prints goes to a log in `folder`."""
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
    """The environment of an installation that finds nothing in a cache, and PyPI alone."""
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
        shared = ROOT.parent / "shared"  # with the real photos, where there are any
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
            return measure([*taskset, *MAKE[name]], folder, os.environ)
        finally:
            for loop in loops:
                loop.kill()
                loop.wait()


def row(name: str, results: Sequence[Measured]) -> str:
    """Name, median, least and most seconds, CPU seconds, runs that ended well."""
    seconds = [result.seconds for result in results]
    cpu = statistics.median(result.cpu_seconds for result in results)
    well = sum(result.code == 0 for result in results)
    spread = f"{min(seconds):.0f} to {max(seconds):.0f}"
    middle = statistics.median(seconds)
    return f"| {name} | {middle:.0f} | {spread} | {cpu:.0f} | {well} of {len(results)} |"


def machine() -> str:
    info = Path("/proc/cpuinfo").read_text()
    lines = dict(
        line.split(":", 1) for line in info.splitlines() if line.startswith(("model name", "flags"))
    )
    flags = {word for value in lines.values() for word in value.split()}
    kinds = [kind for kind in ("avx2", "avx512f", "avx512_vnni", "amx_int8") if kind in flags]
    names = [" ".join(v.split()) for k, v in lines.items() if k.startswith("model")]
    name = names[0] if names else platform.machine()
    memory = psutil.virtual_memory().total / 2**30
    return (
        f"{name} ({', '.join(kinds)}), {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB; "
        f"{platform.platform(terse=True)}, Python {platform.python_version()}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.commands",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", nargs="+", choices=["setup", *MAKE])
    parser.add_argument("--repeats", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--crowded", action="store_true", help="on one core, beside two loops")
    args = parser.parse_args()
    results: dict[str, list[Measured]] = {}
    for _ in tqdm(range(args.repeats), desc="repeats"):
        for name in args.what:
            if name == "setup":
                results.setdefault("make setup", []).append(setup_by_uv())
                results.setdefault("pip install", []).append(setup_by_pip())
            else:
                results.setdefault(name, []).append(after_setup(name, args.crowded))
            for measured in results:
                print(row(measured, results[measured]), flush=True)
    print(f"\n{machine()}; {args.repeats} repeats{', crowded' if args.crowded else ''}")


if __name__ == "__main__":
    main()
