"""Photos of one's own go the same way as those of the public bucket."""

import json
from pathlib import Path

import boto3
import pytest

from data_prep.__main__ import main
from data_prep.folder import DataError, LeftOut, photo_path
from data_prep.own_photos import read_csv, read_folder, take_in
from data_prep.split import read_bins, read_split, split_folder

COUNTS = range(0, 8)


def put(path, content=b"a photo"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def table(tmp_path, text):
    file = tmp_path / "bins.csv"
    file.write_text(text)
    return file


def test_a_folder_a_count_becomes_a_working_folder(tmp_path):
    put(tmp_path / "mine/0/empty.jpg", b"nothing")
    put(tmp_path / "mine/7/full.PNG", b"seven")
    put(tmp_path / "mine/12/more.jpg")
    put(tmp_path / "mine/notes/other.jpg")
    put(tmp_path / "mine/7/notes.txt")
    photos, left_out = take_in(read_folder(tmp_path / "mine"), tmp_path / "data", COUNTS)
    assert photos == ["0-empty", "7-full"]
    assert left_out == [LeftOut("12-more", "count out of range")]
    assert photo_path(tmp_path / "data", "7-full").read_bytes() == b"seven"
    bins, _ = read_bins(tmp_path / "data", COUNTS)
    assert {photo_id: found.count for photo_id, found in bins.items()} == {
        "0-empty": 0,
        "7-full": 7,
    }


def test_photos_of_one_name_in_two_places_stay_two(tmp_path):
    put(tmp_path / "a/shelf.jpg", b"one")
    put(tmp_path / "b/shelf.jpg", b"two")
    file = table(tmp_path, "photo,count\na/shelf.jpg,1\nb/shelf.jpg,2\n")
    photos, _ = take_in(read_csv(file), tmp_path / "data", COUNTS)
    assert len(set(photos)) == 2
    contents = {photo_path(tmp_path / "data", one).read_bytes() for one in photos}
    assert contents == {b"one", b"two"}


def test_a_table_gives_counts_and_groups_and_says_what_is_missing(tmp_path):
    for number in range(40):
        put(tmp_path / f"{number}.jpg")
    rows = [f"{number}.jpg,{1 + number % 2},shelf {number // 4}" for number in range(41)]
    file = table(tmp_path, "\n".join(["photo,count,group", *rows]))
    photos, left_out = take_in(read_csv(file), tmp_path / "data", range(1, 3))
    assert len(photos) == 40
    assert left_out == [LeftOut("40", "photo missing")]
    split_folder(tmp_path / "data", range(1, 3))
    split = read_split(tmp_path / "data")
    sides = {}
    for photo in split.photos:
        sides.setdefault(int(photo.id) // 4, set()).add(photo.side)
    assert all(len(side) == 1 for side in sides.values())
    assert set.union(*sides.values()) == {"train", "test"}


def test_a_table_may_name_objects_in_s3(served_s3, tmp_path):
    client = boto3.client("s3")
    client.create_bucket(Bucket="mine")
    client.put_object(Bucket="mine", Key="shelf/a b.jpg", Body=b"from S3")
    file = table(tmp_path, "photo,count\ns3://mine/shelf/a b.jpg,2\ns3://mine/none.jpg,2\n")
    photos, left_out = take_in(read_csv(file), tmp_path / "data", COUNTS)
    assert photos == ["a-b"]
    assert left_out == [LeftOut("none", "photo missing")]
    assert photo_path(tmp_path / "data", "a-b").read_bytes() == b"from S3"


def test_a_photo_that_was_replaced_is_taken_in_again(tmp_path):
    put(tmp_path / "mine/1/a.jpg", b"before")
    take_in(read_folder(tmp_path / "mine"), tmp_path / "data", COUNTS)
    put(tmp_path / "mine/1/a.jpg", b"now...")
    put(tmp_path / "mine/2/a.jpg", b"other")
    take_in(read_folder(tmp_path / "mine"), tmp_path / "data", COUNTS)
    assert photo_path(tmp_path / "data", "1-a").read_bytes() == b"now..."
    selection = json.loads((tmp_path / "data/selection.json").read_text())
    assert selection["photos"] == ["1-a", "2-a"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no column count and no photo"),
        ("photo,items\na.jpg,1\n", "no column count"),
        ("photo,count\n", "no photo in it"),
        ("photo,count\na.jpg,many\n", r"bins\.csv, line 2: needs a photo and a whole count"),
        ("photo,count\na.jpg\n", "line 2"),
        ("photo,count\n,3\n", "line 2"),
    ],
)
def test_a_table_that_is_none_is_told_in_one_line(tmp_path, text, says):
    with pytest.raises(DataError, match=says) as raised:
        read_csv(table(tmp_path, text))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("there", [True, False])
def test_a_folder_without_photos_shows_what_it_should_be_like(tmp_path, there):
    if there:
        put(tmp_path / "mine/shelf/a.jpg")
    with pytest.raises(DataError, match=r"--source folder .*mine"):
        read_folder(tmp_path / "mine")


def test_a_photo_that_is_named_twice_is_refused(tmp_path: Path) -> None:
    table = tmp_path / "photos.csv"
    table.write_text("photo,count\na.jpg,3\nb.jpg,2\na.jpg,4\n")
    with pytest.raises(DataError, match=r"a\.jpg is there 2 times"):
        read_csv(table)


def test_without_credentials_photos_in_s3_are_one_line(
    aws: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("boto3.Session.get_credentials", lambda _: None)
    (tmp_path / "photos.csv").write_text("photo,count\ns3://bucket/a.jpg,3\n")
    words = ["download", "--source", "csv", str(tmp_path / "photos.csv")]
    assert main([*words, "--data", str(tmp_path / "data")]) == 1
    assert "sign in with" in capsys.readouterr().err
