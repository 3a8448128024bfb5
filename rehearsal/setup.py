"""Set up this checkout: check the machine, then install what `make` needs, once.

    python3 rehearsal/setup.py

Every version and hash comes from requirements.txt and package-lock.json. The Python packages are
installed by uv, either the one on the PATH or one that pip puts into .venv. What is in the caches
of uv and npm is not downloaded again, so a second checkout needs no network.

This file runs before anything is installed, on any python3. It uses only the standard library and
nothing newer than Python 3.8, so that an old Python can still say what is missing.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Callable, NoReturn, Optional, Sequence

ROOT = Path(__file__).resolve().parent.parent
VENV_PYTHON = ROOT / ".venv/bin/python"
PYTHON = "3.11"
NODE = 20
FREE_GB = 10  # 7 GB remain in use, shared with uv's cache if it is on the same disk
OLDEST_UV = (0, 8)  # an older uv on the PATH is not used
INPUTS = {  # folder, which has a stamp once it is complete → files that determine its contents
    ".venv": ("requirements.txt",),
    ".venv/checkov": (".ci/checkov.txt",),
    "node_modules": ("package.json", "package-lock.json"),
}
# Importing these once compiles them. Otherwise the first process would have to, or every process
# where PYTHONDONTWRITEBYTECODE is set. One core imports the first line, another the second.
IMPORTED = (
    # The first module switches off the telemetry of onnxruntime.
    "serving.container, torch.onnx, timm, onnxscript, onnxruntime, optuna",
    "aws_cdk, cdk_nag, cyclopts, awscli.clidriver, awscli.customizations.s3.subcommands, "
    "moto.server, moto.autoscaling.responses, moto.cloudformation.responses, "
    "moto.logs.responses, moto.sagemaker.responses, matplotlib.pyplot, PIL.Image, "
    "rich.progress, uvicorn",
)

RUNNING: list[subprocess.Popen[bytes]] = []
STOPPED = threading.Event()

Which = Callable[[str], Optional[str]]
Output = Callable[[Sequence[str]], str]


class InstallError(RuntimeError):
    """A command failed; the message is the end of its log and one line."""


def main(arguments: Sequence[str] | None = None) -> None:
    argparse.ArgumentParser(
        prog="python3 rehearsal/setup.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args(arguments)
    stale = [folder for folder in INPUTS if is_stale(folder)]
    if not stale:
        return
    python = find_python(shutil.which, output_of)
    free_bytes = shutil.disk_usage(ROOT).free if ".venv" in stale else None
    missing = preflight(python, free_bytes, shutil.which, output_of)
    if python is None or missing:
        fail("missing: " + "; ".join(missing))
    if ".venv" in stale:
        say(
            "Setup runs once: 7 GB of disk and 3 GB of downloads, unless uv has them in its cache; "
            "about a minute and a half at 100 MB/s, six minutes at 10."
        )
    begun = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that child processes end as well
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    keep_caches_here()
    try:
        install(stale, python)
    except InstallError as error:
        *tail, message = str(error).splitlines()
        say("\n".join(tail))
        fail(message)
    except OSError as error:
        fail(f"{error}: check the disk and the owner of {ROOT}")
    say(f"Set up in {elapsed(begun)}.")


def find_python(which: Which, output: Output) -> str | None:
    """Find Python 3.11: in .venv, the running one, or python3.11 on the PATH."""
    for candidate in (str(VENV_PYTHON), sys.executable, which(f"python{PYTHON}")):
        # Ask for the version, as version managers have shims for versions that they cannot run.
        if candidate and output([candidate, "--version"]).startswith(f"Python {PYTHON}."):
            return candidate
    return None


def preflight(
    python: str | None, free_bytes: int | None, which: Which, output: Output
) -> list[str]:
    """Describe what this machine lacks; `free_bytes` is None if nothing large will be installed."""
    missing = []
    if python is None:
        missing.append("Python {} (this is {}.{})".format(PYTHON, *sys.version_info))
    elif not output([python, "-c", "import ensurepip; print(ensurepip.version())"]):
        missing.append(f"venv for Python {PYTHON} (Debian, Ubuntu: python{PYTHON}-venv)")
    node = output(["node", "--version"]) if which("node") else ""
    if not node:
        missing.append(f"Node {NODE} or newer")
    elif int(node.lstrip("v").split(".")[0]) < NODE:
        missing.append(f"Node {NODE} or newer (this is {node})")
    if not which("npm"):
        missing.append("npm")
    if free_bytes is not None and free_bytes < FREE_GB * 10**9:
        missing.append(f"{FREE_GB} GB of free disk ({free_bytes / 1e9:.1f} GB are free in {ROOT})")
    return missing


def output_of(command: Sequence[str]) -> str:
    """The output of a command, or "" if it fails."""
    try:
        done = subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.decode().strip()


def install(stale: Sequence[str], python: str) -> None:
    """Bring every stale folder up to date, independent ones at the same time.

    Raises InstallError for the first command that fails, and ends the others.
    """
    steps = {
        ".venv": ("Python packages", install_python),
        ".venv/checkov": ("checkov", install_checkov),
        "node_modules": ("the AWS CDK command line", install_node),
    }
    if ".venv" in stale:
        run_side_by_side({"uv": lambda: make_venv(python)})
        stale = [*stale, ".venv/checkov"]
    run_side_by_side({label: step for name, (label, step) in steps.items() if name in stale})


def make_venv(python: str) -> None:
    """Create .venv from scratch, and have pip install uv in it unless one is on the PATH.

    An interrupted installation would leave packages that only look complete.
    """
    remove_stamp(".venv")
    base = output_of([python, "-c", "import sys; print(sys._base_executable)"])
    shutil.rmtree(ROOT / ".venv", ignore_errors=True)
    run([base, "-m", "venv", str(VENV_PYTHON.parent.parent)])
    if find_uv(shutil.which, output_of) != "uv":
        pinned = ROOT / ".venv/uv.txt"
        pinned.write_text(pin("uv", (ROOT / "requirements.txt").read_text()))
        wheels = cache_folder() / "wheels"
        pip = [str(VENV_PYTHON), "-m", "pip", "--disable-pip-version-check"]
        flags = ["--quiet", "--no-deps", "--require-hashes", "--requirement", str(pinned)]
        from_cache = [*pip, "install", "--no-index", "--find-links", str(wheels), *flags]
        if not succeeds(from_cache):
            run([*pip, "download", "--dest", str(wheels), *flags])
            run(from_cache)


def find_uv(which: Which, output: Output) -> str:
    """The uv on the PATH if it is new enough, or else that of .venv."""
    version = which("uv") and re.match(r"uv (\d+)\.(\d+)", output(["uv", "--version"]))
    if version and (int(version[1]), int(version[2])) >= OLDEST_UV:
        return "uv"
    return str(ROOT / ".venv/bin/uv")


def pin(name: str, requirements: str) -> str:
    """The lines of a locked requirements.txt for one package."""
    found = re.search(rf"^{name}==.*(?:\n    .*)*\n", requirements, re.MULTILINE)
    if not found:
        raise InstallError(f"requirements.txt has no {name}: run `make lock`")
    return found[0]


def install_python() -> None:
    """Install exactly requirements.txt in .venv, and compile the modules that are used."""
    sync("requirements.txt")
    with ThreadPoolExecutor(max_workers=len(IMPORTED)) as pool:
        imports = [[str(VENV_PYTHON), "-c", f"import {modules}"] for modules in IMPORTED]
        list(pool.map(run, imports))
    write_stamp(".venv")


def install_node() -> None:
    """Install the pinned versions in node_modules."""
    remove_stamp("node_modules")
    run(["npm", "ci", "--prefer-offline", "--no-audit", "--no-fund"])
    write_stamp("node_modules")


def install_checkov() -> None:
    """Install checkov in a folder of its own, as its packages conflict with ours."""
    folder = ROOT / ".venv/checkov"
    remove_stamp(".venv/checkov")
    shutil.rmtree(folder, ignore_errors=True)
    sync(".ci/checkov.txt", "--target", str(folder))
    write_stamp(".venv/checkov")


def sync(requirements: str, *flags: str) -> None:
    """Install exactly `requirements`, from uv's cache if it has everything, or else the network."""
    uv = [find_uv(shutil.which, output_of), "pip", "sync", "--require-hashes"]
    command = [*uv, "--python", str(VENV_PYTHON), *flags, requirements]
    if not succeeds([*command, "--offline"]):
        run(command)


def cache_folder() -> Path:
    """The folder for files that other checkouts can use as well."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bin-counter"


def keep_caches_here() -> None:
    """Move the caches of uv, pip and npm to .cache if the home folder is read-only."""
    try:
        for folder in (cache_folder(), Path.home() / ".npm"):
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=str(folder)):
                pass
    except OSError:
        os.environ["XDG_CACHE_HOME"] = str(ROOT / ".cache")
        os.environ["NPM_CONFIG_CACHE"] = str(ROOT / ".cache/npm")


def is_stale(folder: str) -> bool:
    """Whether the inputs have changed since the stamp was written, or it is missing."""
    stamp = stamp_file(folder)
    complete = stamp.exists() and (folder == "node_modules" or VENV_PYTHON.exists())
    return not complete or stamp.read_text() != fingerprint(INPUTS[folder])


def write_stamp(folder: str) -> None:
    """Record atomically that `folder` is complete."""
    partial = stamp_file(folder).with_suffix(".partial")
    partial.write_text(fingerprint(INPUTS[folder]))
    partial.replace(stamp_file(folder))


def remove_stamp(folder: str) -> None:
    """Record that `folder` is no longer complete, before changing it."""
    if stamp_file(folder).exists():
        stamp_file(folder).unlink()


def stamp_file(folder: str) -> Path:
    return ROOT / folder / ".stamp"


def fingerprint(files: Sequence[str]) -> str:
    """SHA-256 of the names and contents of `files`."""
    digest = hashlib.sha256()
    digest.update(str(ROOT).encode())  # the programs of a virtual environment contain its path
    for file in files:
        digest.update(f"\n{file}\n".encode())
        digest.update((ROOT / file).read_bytes())
    return digest.hexdigest()


def run_side_by_side(steps: dict[str, Callable[[], None]]) -> None:
    """Run all steps, and show on one line which are running; the first error ends all of them."""
    begun = time.monotonic()
    line_start = "\r\033[K" if sys.stdout.isatty() else ""
    with ThreadPoolExecutor(max_workers=3) as pool:
        pending = {pool.submit(step): label for label, step in steps.items()}
        try:
            while pending:
                if line_start:
                    labels = ", ".join(pending.values())
                    say(f"{line_start}Installing {labels} … {elapsed(begun)}", end="")
                done, _ = wait(pending, timeout=1, return_when=FIRST_COMPLETED)
                for future in done:
                    label = pending.pop(future)
                    future.result()
                    say(f"{line_start}Installed {label} in {elapsed(begun)}")
        except BaseException:
            STOPPED.set()
            for process in RUNNING:
                terminate(process)
            say("")
            raise


def run(command: Sequence[str]) -> None:
    """Run a command with its output in a log; raises InstallError with the end of the log."""
    if not succeeds(command):
        tail = log_of(command).read_text(errors="replace").splitlines()[-15:]
        words = " ".join(command)
        raise InstallError("\n".join([*tail, f"`{words}` failed; its output: {log_of(command)}"]))


def succeeds(command: Sequence[str]) -> bool:
    with log_of(command).open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    RUNNING.append(process)
    if STOPPED.is_set():
        terminate(process)
    return process.wait() == 0


def terminate(process: subprocess.Popen[bytes]) -> None:
    """End a process and its children, if it still runs."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)


def log_of(command: Sequence[str]) -> Path:
    """The log file of a command, different for each command."""
    folder = ROOT / ".venv/setup"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{hashlib.sha256(' '.join(command).encode()).hexdigest()[:8]}.log"


def elapsed(start: float) -> str:
    return "{}:{:02}".format(*divmod(int(time.monotonic() - start), 60))


def say(text: str, end: str = "\n") -> None:
    sys.stdout.write(text + end)
    sys.stdout.flush()


def fail(text: str) -> NoReturn:
    sys.exit("error: " + text)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\ninterrupted: run the same command again to continue")
