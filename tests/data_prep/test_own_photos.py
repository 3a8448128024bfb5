"""The user's own photos are prepared like those of the public bucket."""

import io
import itertools
import json
from pathlib import Path
from typing import Any

import boto3
import pytest
from PIL import Image

from common.dataset import open_dataset
from data_prep.__main__ import main
from data_prep.folder import DataError, LeftOut, dataset_path, photo_path
from data_prep.objects import Bucket, FetchError, own_bucket, run
from data_prep.own_photos import id_of, read_folder, take_in
from data_prep.own_tables import read_csv
from data_prep.pack import pack
from data_prep.split import read_bins, read_split, split_folder
from data_prep.verify import verify_folder

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
    empty, full = photos
    assert (empty[:8], full[:7]) == ("0-empty-", "7-full-")
    assert left_out == [LeftOut(id_of("12/more.jpg"), "count out of range")]
    assert photo_path(tmp_path / "data", full).read_bytes() == b"seven"
    bins, _ = read_bins(tmp_path / "data", COUNTS)
    assert {photo_id: found.count for photo_id, found in bins.items()} == {
        empty: 0,
        full: 7,
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
    assert left_out == [LeftOut(id_of("40.jpg"), "photo missing")]
    split_folder(tmp_path / "data", range(1, 3))
    split = read_split(tmp_path / "data")
    sides = {}
    for photo in split.photos:
        sides.setdefault(int(photo.id.partition("-")[0]) // 4, set()).add(photo.side)
    assert all(len(side) == 1 for side in sides.values())
    assert set.union(*sides.values()) == {"train", "test"}


def test_a_table_may_name_objects_in_s3(served_s3, tmp_path):
    client = boto3.client("s3")
    client.create_bucket(Bucket="mine")
    client.put_object(Bucket="mine", Key="shelf/a b.jpg", Body=b"from S3")
    file = table(tmp_path, "photo,count\ns3://mine/shelf/a b.jpg,2\ns3://mine/none.jpg,2\n")
    photos, left_out = take_in(read_csv(file), tmp_path / "data", COUNTS)
    assert photos == [id_of("s3://mine/shelf/a b.jpg")]
    assert photos[0].startswith("mine-shelf-a-b-")
    assert left_out == [LeftOut(id_of("s3://mine/none.jpg"), "photo missing")]
    assert photo_path(tmp_path / "data", photos[0]).read_bytes() == b"from S3"


def test_a_photo_that_was_replaced_is_taken_in_again(tmp_path):
    put(tmp_path / "mine/1/a.jpg", b"before")
    take_in(read_folder(tmp_path / "mine"), tmp_path / "data", COUNTS)
    put(tmp_path / "mine/1/a.jpg", b"now...")
    put(tmp_path / "mine/2/a.jpg", b"other")
    take_in(read_folder(tmp_path / "mine"), tmp_path / "data", COUNTS)
    first, second = id_of("1/a.jpg"), id_of("2/a.jpg")
    assert photo_path(tmp_path / "data", first).read_bytes() == b"now..."
    selection = json.loads((tmp_path / "data/selection.json").read_text())
    assert selection["photos"] == [first, second]


def test_a_photo_keeps_its_id_beside_others_and_wherever_its_table_lies(tmp_path):
    (one,) = read_csv(table(tmp_path, "photo,count\na/shelf.jpg,1\n"))
    there = tmp_path / "elsewhere"
    there.mkdir()
    same, other = read_csv(table(there, "photo,count\na/shelf.jpg,1\nb/shelf.jpg,1\n"))
    assert same.id == one.id != other.id


def test_a_like_named_photo_of_another_bucket_is_another(served_s3, tmp_path):
    client = boto3.client("s3")
    for bucket, count in (("first", 1), ("second", 2)):
        client.create_bucket(Bucket=bucket)
        client.put_object(Bucket=bucket, Key="1.jpg", Body=f"{count}".encode())
        file = table(tmp_path, f"photo,count\ns3://{bucket}/1.jpg,{count}\n")
        (photo_id,), _ = take_in(read_csv(file), tmp_path / "data", COUNTS)
        assert photo_path(tmp_path / "data", photo_id).read_bytes() == f"{count}".encode()


def test_photos_with_dots_and_long_names_are_trained_on(tmp_path):
    names = ["PXL_2024.MP.jpg", "x" * 120 + ".jpg", "ä" * 100 + ".jpg", "fine.jpg"]
    for count, name in itertools.product((1, 2), names):
        for copy in range(5):
            content = io.BytesIO()
            Image.new("RGB", (32, 32)).save(content, "JPEG")
            put(tmp_path / f"mine/{count}/{copy}/{name}", content.getvalue())
    data = tmp_path / "data"
    photos, _ = take_in(read_folder(tmp_path / "mine"), data, range(1, 3))
    split_folder(data, range(1, 3), test_fraction=0.5)
    pack(data, "mine", size=32)
    dataset = open_dataset(dataset_path(data, "mine"))
    assert sorted(dataset.index("train").ids + dataset.index("test").ids) == sorted(photos)
    assert verify_folder(data, "mine", workers=1) == []


class Etagged:
    """A store whose objects have the given ETag."""

    def __init__(self, etag: str) -> None:
        self.meta = {"e_tag": etag}

    async def get_async(self, key: str) -> "Etagged":
        return self

    async def bytes_async(self) -> bytes:
        return b"a photo"


def test_an_etag_that_is_no_checksum_is_not_taken_for_one() -> None:
    def bucket(*, encrypted: bool) -> Bucket:
        store: Any = Etagged(f'"{"0" * 32}"')
        return Bucket("mine", store, encrypted=lambda key: encrypted)

    assert run(bucket(encrypted=True).fetch("a.jpg")) == b"a photo"
    with pytest.raises(FetchError, match="checksum"):
        run(bucket(encrypted=False).fetch("a.jpg"))


@pytest.mark.parametrize("encryption", ["aws:kms", "AES256"])
def test_s3_says_which_etags_are_no_checksums(served_s3: str, encryption: Any) -> None:
    client = boto3.client("s3")
    client.create_bucket(Bucket="mine")
    client.put_object(Bucket="mine", Key="a.jpg", Body=b"", ServerSideEncryption=encryption)
    assert own_bucket("mine").encrypted("a.jpg") == (encryption == "aws:kms")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no column count and no photo"),
        ("photo,items\na.jpg,1\n", "no column count"),
        ("photo,count\n", "there is no photo in it"),
        ("photo,count\na.jpg,many\n", r"bins\.csv, line 2: a photo and a whole count are required"),
        ("photo,count\na.jpg\n", "line 2"),
        ("photo,count\n,3\n", "line 2"),
        ("photo,count\nhttps://example.com/a.jpg,3\n", "neither a path nor s3://bucket/key"),
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
    with pytest.raises(DataError, match=r"line 4: a\.jpg is listed more than once"):
        read_csv(table)


def test_without_credentials_photos_in_s3_are_one_line(
    aws: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("boto3.Session.get_credentials", lambda _: None)
    (tmp_path / "photos.csv").write_text("photo,count\ns3://bucket/a.jpg,3\n")
    words = ["download", "--source", "csv", str(tmp_path / "photos.csv")]
    assert main([*words, "--data", str(tmp_path / "data")]) == 1
    assert "sign in with" in capsys.readouterr().err
