"""Data preparation that is killed at random moments produces the same bytes as without that."""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from data_prep.verify import verify_bucket
from rehearsal.aws.stand_in import ROOT
from tests.support.public_bins import OURS, put_bins, uploaded

PHOTOS = 250
START = 0.3  # share of the whole time that Python needs to start


@pytest.fixture
def s3(served_s3: str, tmp_path: Path) -> Any:
    """The public bucket with synthetic bins, and our bucket, which is empty."""
    client, ids = put_bins(tmp_path / "public", PHOTOS)
    (tmp_path / "ids.txt").write_text("\n".join(ids))
    return client


class Preparation:
    """`data_prep all` from the public bucket to ours."""

    def __init__(self, folder: Path, ids: Path) -> None:
        self._folder = folder
        settings = ["--size", "48", "--shard-mb", "0.1", "--workers", "2", "--requests", "4"]
        self._command = [sys.executable, "-m", "data_prep", "all", *settings]
        self._command += ["--list", str(ids), "--data", str(folder), "--bucket", OURS]

    def run(self, seconds: float | None = None) -> bool:
        """Run it for at most `seconds`; returns whether it finished."""
        process = subprocess.Popen(
            self._command,
            cwd=ROOT,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        try:
            _, said = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return False
        assert process.returncode == 0, said.decode()
        return True

    def step(self) -> str:
        """Return the step in which it was killed."""
        steps = {"selection.json": "download", "split.json": "split"}
        for file, step in steps.items():
            if not (self._folder / file).exists():
                return step
        packed = (self._folder / "datasets" / "bins" / "manifest.json").exists()
        return "upload" if packed else "pack"

    def bytes(self) -> dict[str, str]:
        """Return the hash of each file of the data set, by name."""
        files = (self._folder / "datasets" / "bins").glob("*.*")
        return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.mark.parametrize("kills", [2, pytest.param(50, marks=pytest.mark.slow)])
def test_however_often_it_is_killed_the_bytes_are_the_same(
    s3: Any, tmp_path: Path, kills: int
) -> None:
    in_peace = Preparation(tmp_path / "peace", tmp_path / "ids.txt")
    begun = time.monotonic()
    in_peace.run()
    whole = time.monotonic() - begun
    expected = in_peace.bytes()
    assert uploaded(s3) == expected
    assert len(expected) > 5
    folder = tmp_path / "killed"
    preparation = Preparation(folder, tmp_path / "ids.txt")

    def start_over() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        for name in uploaded(s3):
            s3.delete_object(Bucket=OURS, Key=f"datasets/bins/{name}")

    start_over()
    dice = random.Random(kills)
    killed_in: list[str] = []
    while len(killed_in) < kills:
        if preparation.run(whole * dice.uniform(START, 1)):
            assert preparation.bytes() == expected
            assert uploaded(s3) == expected
            start_over()
            continue
        killed_in.append(preparation.step())
        if "manifest.json" in uploaded(s3):
            assert verify_bucket(OURS, "bins") == [], "a data set with a manifest is complete"
    assert preparation.run()
    assert preparation.bytes() == expected
    assert uploaded(s3) == expected
    if kills >= 50:
        assert set(killed_in) >= {"download", "pack", "upload"}, Counter(killed_in)
