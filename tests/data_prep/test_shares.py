"""Machines that share the work produce the same bytes as one, and pack each photo once."""

import json
import os
import random
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from data_prep.__main__ import main
from data_prep.options import DatasetOptions, Share
from data_prep.shares import work_key
from data_prep.verify import verify_bucket
from rehearsal.aws.stand_in import ROOT
from tests.support.public_bins import OURS, put_bins, uploaded

MACHINES = 3


@pytest.fixture
def s3(served_s3: str, tmp_path: Path) -> Any:
    """The public bucket with synthetic bins, and our bucket, which is empty.

    `ids.txt` also lists a photo that does not exist; two photos cannot be used.
    """
    client, ids = put_bins(tmp_path / "public", 200)
    (tmp_path / "ids.txt").write_text("\n".join([*ids, "absent"]))
    client.delete_object(Bucket="aft-vbi-pds", Key=f"bin-images/{ids[10]}.jpg")
    client.put_object(Bucket="aft-vbi-pds", Key=f"bin-images/{ids[11]}.jpg", Body=b"no photo")
    return client


def command(tmp_path: Path, machine: str) -> list[str]:
    settings = ["--size", "48", "--shard-mb", "0.1", "--workers", "1", "--requests", "4"]
    places = ["--list", str(tmp_path / "ids.txt"), "--bucket", OURS]
    return ["all", *settings, *places, "--data", str(tmp_path / machine)]


def start(tmp_path: Path, number: int) -> "subprocess.Popen[str]":
    words = [*command(tmp_path, f"machine-{number}"), "--share", f"{number}/{MACHINES}"]
    return subprocess.Popen(
        [sys.executable, "-m", "data_prep", *words],
        cwd=ROOT,
        env=os.environ | {"SHARE_LOOK_SECONDS": "0.1"},
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def by_one_machine(s3: Any, tmp_path: Path) -> dict[str, str]:
    """Make the data set on one machine and delete it; returns the hashes of its files."""
    assert main(command(tmp_path, "alone")) == 0
    expected = uploaded(s3)
    for name in expected:
        s3.delete_object(Bucket=OURS, Key=f"datasets/bins/{name}")
    return expected


def test_three_machines_make_the_shards_of_one(s3: Any, tmp_path: Path) -> None:
    expected = by_one_machine(s3, tmp_path)
    manifest = json.loads((tmp_path / "alone/datasets/bins/manifest.json").read_text())
    assert manifest["left_out"]["reasons"].keys() >= {
        "not in the bucket",
        "photo missing",
        "photo cannot be decoded",
        "count out of range",
    }
    machines = [start(tmp_path, number) for number in (3, 1, 2)]
    for machine in machines:
        said, _ = machine.communicate(timeout=600)
        assert machine.returncode == 0, said
    assert uploaded(s3) == expected
    shards = [set(folder.glob("datasets/bins/*.tar")) for folder in tmp_path.glob("machine-*")]
    names = [file.name for files in shards for file in files]
    assert sorted(names) == sorted(name for name in expected if name.endswith(".tar"))
    assert all(shards), "each machine packed something"


@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_a_machine_that_dies_is_started_again_and_completes_the_whole(
    s3: Any, tmp_path: Path, kills: int
) -> None:
    expected = by_one_machine(s3, tmp_path)
    dice = random.Random(kills)
    machines = {number: start(tmp_path, number) for number in range(1, MACHINES + 1)}
    for _ in range(kills):
        number = dice.choice(list(machines))
        with suppress(subprocess.TimeoutExpired):
            machines[number].wait(dice.uniform(0.5, 2.5))
        with suppress(ProcessLookupError):
            os.killpg(machines[number].pid, signal.SIGKILL)
        machines[number].communicate()
        if "manifest.json" in uploaded(s3):
            assert verify_bucket(OURS, "bins") == []
        machines[number] = start(tmp_path, number)
    for machine in machines.values():
        said, _ = machine.communicate(timeout=600)
        assert machine.returncode == 0, said
    assert uploaded(s3) == expected


@pytest.mark.parametrize("of", [1, 2, 7, 50])
def test_every_thing_falls_to_one_share(of: int) -> None:
    things = list(range(30))
    shares = [Share(number, of).mine(things) for number in range(1, of + 1)]
    assert sorted(thing for mine in shares for thing in mine) == things


def test_other_photos_or_settings_are_other_work() -> None:
    usual = DatasetOptions()
    keys = {
        work_key(usual, ["1", "2"]),
        work_key(usual, ["1", "3"]),
        work_key(DatasetOptions(method="random"), ["1", "2"]),
        work_key(DatasetOptions(counts=range(6)), ["1", "2"]),
    }
    assert len(keys) == 4
    assert work_key(DatasetOptions(workers=3), ["1", "2"]) in keys, (
        "workers do not change the result"
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--share", "2/8"], "give them --list FILE"),
        (["--share", "2/8", "--source", "folder", "mine"], "share a list of public photos"),
    ],
)
def test_shares_are_of_a_list(words: list[str], says: str, capsys: Any) -> None:
    assert main(["all", "--bucket", OURS, *words]) == 1
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("share", ["0/3", "4/3", "two/3", "3"])
def test_a_share_that_is_none_is_refused(share: str, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        main(["all", "--bucket", OURS, "--share", share])
    assert "is not a share such as 2/8" in capsys.readouterr().err
