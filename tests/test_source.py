import json

import boto3
import pytest
from moto import mock_aws

from data_prep.folder import DataError, LeftOut, metadata_path, photo_path, summarize
from data_prep.source import PUBLIC_BUCKET, download, list_bucket, public_client, read_list

COUNTS = range(1, 6)


def metadata(count: object) -> bytes:
    return json.dumps({"BIN_FCSKU_DATA": {}, "EXPECTED_QUANTITY": count}).encode()


@pytest.fixture
def put(monkeypatch):
    """Puts objects into a stand-in for the public bucket; an id given twice is two objects."""
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with mock_aws():
        client = boto3.client("s3", region_name="us-east-1")
        client.create_bucket(Bucket=PUBLIC_BUCKET, ACL="public-read")

        def put_object(key: str, content: bytes) -> None:
            client.put_object(Bucket=PUBLIC_BUCKET, Key=key, Body=content, ACL="public-read")

        yield put_object


def put_bin(put, photo_id: str, count: object = 3, photo: bytes | None = b"a photo") -> None:
    put(f"metadata/{photo_id}.json", metadata(count))
    if photo is not None:
        put(f"bin-images/{photo_id}.jpg", photo)


def test_a_photo_and_its_metadata_arrive_with_their_bytes(put, tmp_path):
    put_bin(put, "00007", 4, b"photo of seven")
    assert download(["00007"], tmp_path, COUNTS) == (["00007"], [])
    assert photo_path(tmp_path, "00007").read_bytes() == b"photo of seven"
    assert metadata_path(tmp_path, "00007").read_bytes() == metadata(4)


def test_ids_that_are_the_same_number_stay_two_photos(put, tmp_path):
    put_bin(put, "1", 1, b"one")
    put_bin(put, "00001", 5, b"one with zeros")
    photos, _ = download(["1", "00001"], tmp_path, COUNTS)
    assert photos == ["1", "00001"]
    assert photo_path(tmp_path, "1").read_bytes() == b"one"
    assert photo_path(tmp_path, "00001").read_bytes() == b"one with zeros"


def test_what_cannot_be_used_is_left_out_and_the_run_goes_on(put, tmp_path):
    put_bin(put, "good", 5)
    put_bin(put, "empty", 0)
    put_bin(put, "crowded", 6)
    put_bin(put, "no-photo", 2, photo=None)
    put_bin(put, "half", 2.5)
    put_bin(put, "truth", True)
    put("metadata/damaged.json", b'{"EXPECTED_QUANTITY": 3')
    put("metadata/no-count.json", b"{}")
    put("metadata/a-list.json", b"[]")
    asked = ["absent", "empty", "crowded", "no-photo", "half", "truth", "damaged", "no-count"]
    asked += ["a-list", "good"]
    photos, left_out = download(asked, tmp_path, COUNTS)
    assert photos == ["good"]
    assert left_out == [
        LeftOut("absent", "not in the bucket"),
        LeftOut("empty", "count out of range"),
        LeftOut("crowded", "count out of range"),
        LeftOut("no-photo", "photo missing"),
        LeftOut("half", "EXPECTED_QUANTITY is not a whole number"),
        LeftOut("truth", "EXPECTED_QUANTITY is not a whole number"),
        LeftOut("damaged", "metadata is not JSON"),
        LeftOut("no-count", "metadata without EXPECTED_QUANTITY"),
        LeftOut("a-list", "metadata without EXPECTED_QUANTITY"),
    ]
    assert "9 left out" in summarize(left_out)
    assert "2 count out of range" in summarize(left_out)
    selection = json.loads((tmp_path / "selection.json").read_text())
    assert selection["photos"] == ["good"]
    assert {"id": "absent", "reason": "not in the bucket"} in selection["left_out"]


def test_photos_out_of_range_are_not_fetched(put, tmp_path):
    put_bin(put, "00009", 6)
    download(["00009"], tmp_path, COUNTS)
    assert not photo_path(tmp_path, "00009").exists()


def test_whole_files_are_not_fetched_again_and_parts_are_not_taken_for_whole(put, tmp_path):
    put_bin(put, "00001")
    put_bin(put, "00002", photo=b"the whole photo")
    download(["00001"], tmp_path, COUNTS)
    photo_path(tmp_path, "00001").write_bytes(b"kept")
    photo_path(tmp_path, "00002").with_name(".00002.jpg.part").write_bytes(b"the wh")
    assert download(["00001", "00002"], tmp_path, COUNTS)[0] == ["00001", "00002"]
    assert photo_path(tmp_path, "00001").read_bytes() == b"kept"
    assert photo_path(tmp_path, "00002").read_bytes() == b"the whole photo"
    assert not list(tmp_path.glob("*/.*"))


def test_the_limit_is_met_exactly_past_photos_that_are_left_out(put, tmp_path):
    for number in range(20):
        put_bin(put, f"{number:05d}", 3 if number % 3 else 9)
    ids = list_bucket(public_client(), PUBLIC_BUCKET)
    photos, left_out = download(ids, tmp_path, COUNTS, limit=5)
    assert photos == ["00001", "00002", "00004", "00005", "00007"]
    assert [one.id for one in left_out] == ["00000", "00003", "00006"]


def test_only_metadata_directly_under_its_prefix_is_listed(put):
    for key in ("metadata/00001.json", "metadata/old/7.json", "metadata/read.me", "other.json"):
        put(key, b"{}")
    assert list(list_bucket(public_client(), PUBLIC_BUCKET)) == ["00001"]


def test_a_bucket_that_is_not_there_is_an_error_not_a_photo_left_out(put, tmp_path):
    with pytest.raises(DataError, match=r"s3://no-such-bucket/metadata/1\.json"):
        download(["1"], tmp_path, COUNTS, bucket="no-such-bucket")


def test_a_download_that_fails_leaves_no_selection_of_an_earlier_one(put, tmp_path):
    put_bin(put, "00001")
    download(["00001"], tmp_path, COUNTS)
    with pytest.raises(DataError):
        download(["00002"], tmp_path, COUNTS, bucket="no-such-bucket")
    assert not (tmp_path / "selection.json").exists()


def test_ids_come_from_the_list_as_text_each_once(tmp_path):
    path = tmp_path / "file_list.json"
    path.write_text(
        '{"1": ["data/metadata/00001.json", "data/metadata/1.json"],'
        ' "2": ["data/metadata/1.json", "data/metadata/100313.json"]}'
    )
    assert read_list(path) == ["00001", "1", "100313"]


@pytest.mark.parametrize(
    ("content", "says"),
    [("{", "not JSON"), ("[]", "count →"), ('{"1": [7]}', "count →"), ('{"1": "a"}', "count →")],
)
def test_a_list_of_another_kind_is_named(tmp_path, content, says):
    path = tmp_path / "wrong.json"
    path.write_text(content)
    with pytest.raises(DataError, match=says) as raised:
        read_list(path)
    assert "wrong.json" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_absent_list_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.json: No such file"):
        read_list(tmp_path / "none.json")
