"""A Debian in a folder, for tests that run what we make on a real system instead of a stand-in."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SUITE = "bookworm"  # whose Python is 3.11, and whose minor releases change nothing here


def need_root_and(**packages: str) -> None:
    """Skip the test where a program is missing; `packages`: program to Debian's package of it."""
    missing = [package for program, package in packages.items() if not shutil.which(program)]
    if missing:
        pytest.skip(f"run `apt-get install {' '.join(missing)}` first")
    if os.geteuid():
        pytest.skip("needs root, for chroot and mounts")


def install_debian(root: Path, *packages: str) -> None:
    """A minute or two, most of it the download."""
    run("debootstrap", "--variant=minbase", f"--include={','.join(packages)}", SUITE, root)


def run(*command: str | Path) -> str:
    """What it printed; fails the test with its last words."""
    words = list(map(str, command))
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(words)}: {(done.stderr or done.stdout)[-2000:]}"
    return done.stdout.strip()
