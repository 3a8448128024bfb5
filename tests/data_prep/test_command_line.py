"""The command line, as a user sees it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from common.files import ROOT
from data_prep.__main__ import main

SYNTHESIZE = ["synthesize", "--photos", "150", "--seed", "3", "--side", "64-80", "--workers", "1"]


@pytest.fixture(scope="module")
def bins(tmp_path_factory):
    folder = tmp_path_factory.mktemp("public")
    assert main([*SYNTHESIZE, "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def public_bucket(served_s3, client, bins):
    """The stand-in with synthetic bins in the public bucket."""
    client.create_bucket(Bucket="aft-vbi-pds", ACL="public-read")
    for path in bins.glob("*/*"):
        key = f"{path.parent.name}/{path.name}"
        client.put_object(Bucket="aft-vbi-pds", Key=key, Body=path.read_bytes(), ACL="public-read")
    return client


def prepare(tmp_path, *more):
    small = ["--size", "32", "--workers", "1", "--min-photos", "20"]
    return main(["all", "--data", str(tmp_path / "data"), "--bucket", "ours", *small, *more])


def read_manifest(client, name="bins"):
    key = f"datasets/{name}/manifest.json"
    return json.loads(client.get_object(Bucket="ours", Key=key)["Body"].read())


def test_all_goes_from_the_public_bucket_to_ours(public_bucket, tmp_path, capsys):
    assert prepare(tmp_path, "--limit", "120", "--name", "first") == 0
    manifest = read_manifest(public_bucket, "first")
    assert sum(sum(photos.values()) for photos in manifest["photos"].values()) == 120
    assert manifest["name"] == "first"
    assert capsys.readouterr().out.splitlines()[-1] == "s3://ours/datasets/first/"


def test_a_list_decides_which_photos_and_reports_what_the_bucket_lacks(
    public_bucket, bins, tmp_path, capsys
):
    names = [f"data/metadata/{path.name}" for path in (bins / "metadata").iterdir()]
    listed = tmp_path / "file_list.json"
    listed.write_text(json.dumps({"1": sorted(names), "2": ["data/metadata/999999.json"]}))
    assert prepare(tmp_path, "--list", str(listed)) == 0
    manifest = read_manifest(public_bucket)
    assert manifest["left_out"]["photos"]["not in the bucket"] == ["999999"]
    assert "not in the bucket: 1" in capsys.readouterr().out
    packed = sum(sum(photos.values()) for photos in manifest["photos"].values())
    assert packed + manifest["left_out"]["total"] == 151


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["download"], "--list FILE, or --limit N"),
        (["download", "--list", "none.json"], "none.json: No such file"),
        (["split"], "run `python -m data_prep download` first"),
        (["pack"], "run `python -m data_prep split` first"),
        (["upload", "--bucket", "ours"], "pack --name bins` first"),
        (["upload"], "bin-counter-DataStack is not deployed"),
        (["download", "--limit", "1", "--source-bucket", "no-such-bucket"], "NoSuchBucket"),
    ],
)
@pytest.mark.usefixtures("served_s3", "client")
def test_a_user_s_error_is_one_line(arguments, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert main(arguments) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert says in last
    assert "Traceback" not in last


def test_too_few_photos_end_it_with_the_number(public_bucket, tmp_path, capsys):
    assert prepare(tmp_path, "--limit", "19") == 1
    assert "only 19 photos are left, --min-photos requires 20" in capsys.readouterr().err


@pytest.mark.usefixtures("public_bucket")
def test_a_larger_sample_adds_to_a_smaller_one_listed_or_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def download(*words: str) -> list[str]:
        folder = tmp_path / "-".join(words).replace("/", "")
        assert main(["download", "--data", str(folder), *words]) == 0
        photos: list[str] = json.loads((folder / "selection.json").read_text())["photos"]
        return photos

    small, large = download("--limit", "20"), download("--limit", "60")
    shown = capsys.readouterr().err
    assert "list: 100%" in shown
    assert "150/150" in shown
    assert (len(small), len(large)) == (20, 60)
    assert set(small) < set(large)
    assert main(["list"]) == 0
    ids = capsys.readouterr().out.split()
    assert ids.index(small[-1]) > 75, "the sample is not just the first ids"
    listed = tmp_path / "ids.txt"
    listed.write_text("\n".join(reversed(ids)))
    assert download("--list", str(listed), "--limit", "20") == small


def test_a_sample_of_a_folder_has_every_count(tmp_path: Path) -> None:
    for count in range(1, 5):
        (tmp_path / "mine" / str(count)).mkdir(parents=True)
        for number in range(50):
            (tmp_path / "mine" / str(count) / f"{number}.jpg").write_bytes(b"photo")
    data = tmp_path / "data"
    words = ["--source", "folder", str(tmp_path / "mine"), "--limit", "40"]
    assert main(["download", "--data", str(data), *words]) == 0
    photos = json.loads((data / "selection.json").read_text())["photos"]
    assert len(photos) == 40
    assert {photo[0] for photo in photos} == {"1", "2", "3", "4"}


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--counts", "5-1"),
        ("--counts", "a"),
        ("--limit", "0"),
        ("--limit", "-3"),
        ("--test-fraction", "1"),
        ("--test-fraction", "half"),
        ("--name", "../up"),
        ("--size", "x"),
        ("--shard-mb", "inf"),
        ("--source", "folder"),
        ("--split", "half"),
    ],
)
def test_a_wrong_setting_is_named_with_its_value(option, value, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["all", f"{option}={value}"])
    assert ended.value.code == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ")
    assert option in error
    assert value in error


@pytest.mark.parametrize(
    "command", ["all", "download", "split", "pack", "upload", "weights", "synthesize"]
)
def test_every_command_explains_itself(command, capsys):
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--data" in shown or "--out" in shown
    assert "None" not in shown


def test_weights_without_an_account_stay_here(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["weights", "--arch", "efficientnet_lite0", "--local", "--data", str(tmp_path)])
    file = tmp_path / "weights" / "efficientnet_lite0.pth"
    assert capsys.readouterr().out == f"{file}\n"
    assert file.stat().st_size > 1e7


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("synthesize --photos 2 --side 64-65 --workers 1 --out drawn", 0, "2 synthetic photos"),
        ("pack", 1, "error: "),
    ],
)
def test_a_thread_that_shutdown_would_abort_cannot_spoil_the_exit_code(tmp_path, words, code, said):
    """`os.abort` stands for a thread of Rust that waits for the interpreter."""
    command = (
        "import atexit, os, runpy, sys; atexit.register(os.abort); "
        f"sys.argv[1:] = {words.split()}; runpy.run_module('data_prep', run_name='__main__')"
    )
    ended = subprocess.run(
        [sys.executable, "-c", command],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == code, ended.stderr
    assert (ended.stdout or ended.stderr).startswith(said)
