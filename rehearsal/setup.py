"""Set up this checkout: check the machine, then install what `make` needs, once.

    python3 rehearsal/setup.py

Runs before anything is installed, under whatever python3 there is: the standard library
only, and nothing newer than Python 3.8, so that an old one can still say what is missing.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable, NoReturn, Optional, Sequence

ROOT = Path(__file__).resolve().parent.parent
VENV_PYTHON = ROOT / ".venv/bin/python"
PYTHON = "3.11"
NODE = 20
FREE_GB = 10  # 7 GB stay; pip needs the rest while it unpacks
PYTHON_FILES = (
    "requirements.txt",
    "serving/requirements.txt",
    "training/requirements.txt",
    ".ci/constraints.txt",
)
NODE_FILES = ("package.json", "package-lock.json")
CHECKOV_FILES = (".ci/checkov.txt",)
LACKED_BY_THE_MACHINE = "tqdm"  # the rehearsed training machine installs it as a wheel

Which = Callable[[str], Optional[str]]
Output = Callable[[Sequence[str]], str]


def main(arguments: Sequence[str] | None = None) -> None:
    argparse.ArgumentParser(
        prog="python3 rehearsal/setup.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a child is ended, too
    python_stale = is_stale("python", PYTHON_FILES, VENV_PYTHON)
    node_stale = is_stale("node", NODE_FILES, ROOT / "node_modules/.bin/cdk")
    python = find_python(shutil.which, output_of)
    free_bytes = shutil.disk_usage(ROOT).free if python_stale else None
    missing = preflight(python, free_bytes, shutil.which, output_of)
    if python is None or missing:
        fail("missing: " + "; ".join(missing))
    if python_stale:
        if python == str(VENV_PYTHON):
            say("The requirements have changed: bringing .venv up to date.")
        else:
            say("Setting up once: about 5 minutes on a fast line, 7 GB of disk.")
        install_python(python)
    if node_stale:
        install_node()
    # Asked only now: a new .venv is without it.
    if is_stale("checkov", CHECKOV_FILES, ROOT / ".venv/checkov/bin/checkov"):
        install_checkov()


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


def install_python(python: str) -> None:
    """Make .venv with `python`, unless it is .venv's own, and install the pinned versions."""
    stamp_file("python").unlink(missing_ok=True)
    if python != str(VENV_PYTHON):
        shutil.rmtree(ROOT / ".venv", ignore_errors=True)
        run("Making .venv", [python, "-m", "venv", str(ROOT / ".venv")])
    pip = [str(VENV_PYTHON), "-m", "pip", "--disable-pip-version-check"]
    install = ["install", "--progress-bar=off", "--requirement", "requirements.txt"]
    run("Installing Python packages", pip + install)
    wheels = ROOT / ".venv/wheels"
    shutil.rmtree(wheels, ignore_errors=True)
    download = ["download", "--progress-bar=off", "--no-deps", "--dest", str(wheels)]
    pinned = ["--constraint", ".ci/constraints.txt", LACKED_BY_THE_MACHINE]
    run("Fetching a wheel for the rehearsed machine", pip + download + pinned)
    write_stamp("python", PYTHON_FILES)


def install_node() -> None:
    """Bring node_modules to the pinned versions."""
    stamp_file("node").unlink(missing_ok=True)
    run("Installing the AWS CDK command line", ["npm", "ci", "--no-audit", "--no-fund"])
    write_stamp("node", NODE_FILES)


def install_checkov() -> None:
    """Make an environment for checkov, whose packages clash with ours: 270 MB, in .venv/checkov."""
    stamp_file("checkov").unlink(missing_ok=True)
    environment = ROOT / ".venv/checkov"
    shutil.rmtree(environment, ignore_errors=True)
    venv = [str(VENV_PYTHON), "-m", "venv", "--without-pip", str(environment)]
    run("Making .venv/checkov", venv)
    pip = [str(VENV_PYTHON), "-m", "pip", "--disable-pip-version-check"]
    install = ["--python", str(environment / "bin/python"), "install", "--progress-bar=off"]
    frozen = ["--no-deps", "--requirement", *CHECKOV_FILES]
    run("Installing checkov", pip + install + frozen)
    write_stamp("checkov", CHECKOV_FILES)


def is_stale(name: str, files: Sequence[str], product: Path) -> bool:
    """Whether `files` have changed since the stamp was written, or `product` is gone."""
    stamp = stamp_file(name)
    return not (stamp.exists() and product.exists() and stamp.read_text() == fingerprint(files))


def write_stamp(name: str, files: Sequence[str]) -> None:
    """Record, all at once or not at all, that what `files` ask for is installed."""
    partial = stamp_file(name).with_suffix(".partial")
    partial.write_text(fingerprint(files))
    partial.replace(stamp_file(name))


def stamp_file(name: str) -> Path:
    return ROOT / ".venv" / f"{name}.stamp"


def fingerprint(files: Sequence[str]) -> str:
    """SHA-256 of the names and contents of `files`."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"\n{file}\n".encode())
        digest.update((ROOT / file).read_bytes())
    return digest.hexdigest()


def run(label: str, command: Sequence[str]) -> None:
    """Run a command with its output in a log, and show the time that passes on one line.

    Fails with the end of the log when the command does; ends the command when interrupted.
    """
    log = ROOT / ".venv/setup.log"
    log.parent.mkdir(exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        show_time(process, label)
    except BaseException:
        process.terminate()
        process.wait()
        raise
    if process.returncode:
        tail = log.read_text(errors="replace").splitlines()[-15:]
        say("\n".join(["", *tail]))
        fail(f"{label} failed (exit code {process.returncode}); the whole log: {log}")


def show_time(process: subprocess.Popen[bytes], label: str) -> None:
    """Wait for the end of `process`, saying how long it takes; on a terminal once a second."""
    start = time.monotonic()
    if sys.stdout.isatty():
        while process.poll() is None:
            say(f"\r{label} … {elapsed(start)}", end="")
            try:
                process.wait(timeout=1)
            except subprocess.TimeoutExpired:
                continue
        say("\r", end="")
    else:
        say(f"{label} …")
        process.wait()
    say(f"{label}: {'failed' if process.returncode else 'done'} in {elapsed(start)}")


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
