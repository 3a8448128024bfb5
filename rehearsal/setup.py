"""Set up this checkout: check the machine, then install what `make` needs, once.

    python3 rehearsal/setup.py

Every version and its hash comes from requirements.txt and package-lock.json. uv installs the
Python packages: the one on the PATH, or one that pip puts into .venv. What is in the caches of uv
and npm is not downloaded again, so that a second checkout needs no network.

Runs before anything is installed, under whatever python3 there is: the standard library
only, and nothing newer than Python 3.8, so that an old one can still say what is missing.
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
FREE_GB = 10  # 7 GB stay; uv's cache shares them, where it is on the same disk
OLDEST_UV = (0, 8)  # an older one on the PATH is not used
INPUTS = {  # folder, which holds a stamp once it is complete, to what decides its contents
    ".venv": ("requirements.txt",),
    ".venv/checkov": (".ci/checkov.txt",),
    "node_modules": ("package.json", "package-lock.json"),
}
# Compiles what these import, in one go; otherwise each process would, where
# PYTHONDONTWRITEBYTECODE is set, and the first one elsewhere.
IMPORTED = (
    "serving, "  # first: it switches the telemetry of onnxruntime off
    "aws_cdk, cdk_nag, awscli.clidriver, awscli.customizations.s3.subcommands, "
    "moto.server, moto.autoscaling.responses, moto.cloudformation.responses, "
    "moto.logs.responses, moto.sagemaker.responses, matplotlib.pyplot, onnxruntime, onnxscript, "
    "optuna, PIL.Image, rich.progress, timm, torch.onnx, uvicorn"
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
            "Setting up once: 7 GB of disk, 3 GB to download unless uv has them in its cache; "
            "about a minute and a half at 100 MB/s, six at 10."
        )
    begun = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that children are ended, too
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    keep_caches_here()
    try:
        install(stale, python)
    except InstallError as error:
        *tail, message = str(error).splitlines()
        say("\n".join(tail))
        fail(message)
    except OSError as error:
        fail(f"{error}: check the disk and who owns {ROOT}")
    say(f"Set up in {elapsed(begun)}.")


def find_python(which: Which, output: Output) -> str | None:
    """A Python 3.11: that of .venv, the running one, or the python3.11 on the PATH."""
    for candidate in (str(VENV_PYTHON), sys.executable, which(f"python{PYTHON}")):
        # Asked, not trusted: a version manager has shims for versions that it cannot run.
        if candidate and output([candidate, "--version"]).startswith(f"Python {PYTHON}."):
            return candidate
    return None


def preflight(
    python: str | None, free_bytes: int | None, which: Which, output: Output
) -> list[str]:
    """What this machine lacks, in words; `free_bytes` is None where nothing big is to come."""
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
    """What a command prints, or "" when it fails."""
    try:
        done = subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.decode().strip()


def install(stale: Sequence[str], python: str) -> None:
    """Bring everything stale up to date, side by side where one does not need the other.

    Raises InstallError with the first command that fails; the others are ended.
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
    """Make .venv anew, as an interrupted installation leaves packages that only look complete,
    and have pip put uv into it unless there is one on the PATH."""
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
    """The uv on the PATH if it is new enough, or that of .venv."""
    version = which("uv") and re.match(r"uv (\d+)\.(\d+)", output(["uv", "--version"]))
    if version and (int(version[1]), int(version[2])) >= OLDEST_UV:
        return "uv"
    return str(ROOT / ".venv/bin/uv")


def pin(name: str, requirements: str) -> str:
    """The lines of a locked requirements.txt that are about one package."""
    found = re.search(rf"^{name}==.*(?:\n    .*)*\n", requirements, re.MULTILINE)
    if not found:
        raise InstallError(f"requirements.txt has no {name}: run `make lock`")
    return found[0]


def install_python() -> None:
    """Install exactly what requirements.txt has into .venv, and compile what is used of it."""
    sync("requirements.txt")
    run([str(VENV_PYTHON), "-c", f"import {IMPORTED}"])
    write_stamp(".venv")


def install_node() -> None:
    """Bring node_modules to the pinned versions."""
    remove_stamp("node_modules")
    run(["npm", "ci", "--prefer-offline", "--no-audit", "--no-fund"])
    write_stamp("node_modules")


def install_checkov() -> None:
    """Put checkov, whose packages clash with ours, into a folder of its own."""
    folder = ROOT / ".venv/checkov"
    remove_stamp(".venv/checkov")
    shutil.rmtree(folder, ignore_errors=True)
    sync(".ci/checkov.txt", "--target", str(folder))
    write_stamp(".venv/checkov")


def sync(requirements: str, *flags: str) -> None:
    """Install exactly `requirements`: from uv's cache, and only if that is not all, the network."""
    uv = [find_uv(shutil.which, output_of), "pip", "sync", "--require-hashes"]
    command = [*uv, "--python", str(VENV_PYTHON), *flags, requirements]
    if not succeeds([*command, "--offline"]):
        run(command)


def cache_folder() -> Path:
    """Where this project keeps what a second checkout can use."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bin-counter"


def keep_caches_here() -> None:
    """Have uv, pip and npm keep their caches in .cache where the home folder is read-only."""
    try:
        for folder in (cache_folder(), Path.home() / ".npm"):
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=str(folder)):
                pass
    except OSError:
        os.environ["XDG_CACHE_HOME"] = str(ROOT / ".cache")
        os.environ["NPM_CONFIG_CACHE"] = str(ROOT / ".cache/npm")


def is_stale(folder: str) -> bool:
    """Whether the inputs have changed since the stamp was written, or there is none."""
    stamp = stamp_file(folder)
    complete = stamp.exists() and (folder == "node_modules" or VENV_PYTHON.exists())
    return not complete or stamp.read_text() != fingerprint(INPUTS[folder])


def write_stamp(folder: str) -> None:
    """Record, all at once or not at all, that `folder` is complete."""
    partial = stamp_file(folder).with_suffix(".partial")
    partial.write_text(fingerprint(INPUTS[folder]))
    partial.replace(stamp_file(folder))


def remove_stamp(folder: str) -> None:
    """Before anything else: `folder` is no longer complete."""
    if stamp_file(folder).exists():
        stamp_file(folder).unlink()


def stamp_file(folder: str) -> Path:
    return ROOT / folder / ".stamp"


def fingerprint(files: Sequence[str]) -> str:
    """SHA-256 of the names and contents of `files`."""
    digest = hashlib.sha256()
    digest.update(str(ROOT).encode())  # programs of an environment know where it is
    for file in files:
        digest.update(f"\n{file}\n".encode())
        digest.update((ROOT / file).read_bytes())
    return digest.hexdigest()


def run_side_by_side(steps: dict[str, Callable[[], None]]) -> None:
    """Run all steps, and show on one line which of them go on; the first error ends all."""
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
    """Run a command with its output in a log; raises InstallError with the end of that."""
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
    """End a process, if it still runs, with its children."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)


def log_of(command: Sequence[str]) -> Path:
    """A file for the output of a command, another one for each that runs at the same time."""
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
        sys.exit("\ninterrupted: the same command goes on from here")
