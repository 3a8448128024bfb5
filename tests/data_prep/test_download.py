"""Files are downloaded completely or not at all, and a failed download does not stop others."""

import errno
import hashlib
import json
import threading
from collections import Counter
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import boto3
import pytest

from data_prep import download as module
from data_prep import objects
from data_prep.download import download, fetch_photos
from data_prep.folder import DataError, LeftOut, metadata_path, photo_path, summarize
from data_prep.objects import PUBLIC_BUCKET, public_bucket
from data_prep.shares import read_metadata

COUNTS = range(1, 6)


def metadata(count: object) -> bytes:
    return json.dumps({"BIN_FCSKU_DATA": {}, "EXPECTED_QUANTITY": count}).encode()


@pytest.fixture
def put(served_s3):
    """Return a function that puts an object into a stand-in for the public bucket."""
    client = boto3.client("s3")
    client.create_bucket(Bucket=PUBLIC_BUCKET, ACL="public-read")

    def put_object(key: str, content: bytes) -> None:
        client.put_object(Bucket=PUBLIC_BUCKET, Key=key, Body=content, ACL="public-read")

    return put_object


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
    assert "count out of range: 2" in summarize(left_out)
    selection = json.loads((tmp_path / "selection.json").read_text())
    assert selection["photos"] == ["good"]
    assert selection["left_out"]["photos"]["not in the bucket"] == ["absent"]


def test_photos_out_of_range_are_not_fetched(put, tmp_path):
    put_bin(put, "00009", 6)
    download(["00009"], tmp_path, COUNTS)
    assert not photo_path(tmp_path, "00009").exists()


def test_whole_files_are_not_fetched_again_and_parts_are_not_taken_for_whole(put, tmp_path):
    put_bin(put, "00001")
    put_bin(put, "00002", photo=b"the whole photo")
    download(["00001"], tmp_path, COUNTS)
    photo_path(tmp_path, "00001").write_bytes(b"kept")
    photo_path(tmp_path, "00002").with_name(".00002.jpg.partial").write_bytes(b"the wh")
    assert download(["00001", "00002"], tmp_path, COUNTS)[0] == ["00001", "00002"]
    assert photo_path(tmp_path, "00001").read_bytes() == b"kept"
    assert photo_path(tmp_path, "00002").read_bytes() == b"the whole photo"
    assert not list(tmp_path.glob("*/.*"))


def test_the_limit_is_met_exactly_past_photos_that_are_left_out(put, tmp_path):
    for number in range(20):
        put_bin(put, f"{number:05d}", 3 if number % 3 else 9)
    ids = [f"{number:05d}" for number in range(20)]
    photos, left_out = download(ids, tmp_path, COUNTS, limit=5)
    assert photos == ["00001", "00002", "00004", "00005", "00007"]
    assert [one.id for one in left_out] == ["00000", "00003", "00006"]


def test_a_bucket_that_is_not_there_is_an_error_not_a_photo_left_out(put, tmp_path):
    with pytest.raises(DataError, match=r"s3://no-such-bucket/metadata/1\.json: NoSuchBucket"):
        download(["1"], tmp_path, COUNTS, bucket="no-such-bucket")


def test_a_download_that_fails_leaves_no_selection_of_an_earlier_one(put, tmp_path):
    put_bin(put, "00001")
    download(["00001"], tmp_path, COUNTS)
    with pytest.raises(DataError):
        download(["00002"], tmp_path, COUNTS, bucket="no-such-bucket")
    assert not (tmp_path / "selection.json").exists()


class Moody(BaseHTTPRequestHandler):
    """An S3 server that answers successive requests for a key as `moods` says."""

    protocol_version = "HTTP/1.1"
    moods: ClassVar[dict[str, list[str]]] = {}
    asked: ClassVar[Counter[str]] = Counter()

    def do_GET(self) -> None:
        key = self.path.rsplit("/", 1)[1]
        moods = self.moods.get(key, ["good"])
        mood = moods.pop(0) if len(moods) > 1 else moods[0]
        self.asked[key] += 1
        body = metadata(3) if key.endswith(".json") else f"photo {key}".encode() * 1000
        status = {"slow down": 503, "denied": 403}.get(mood, 200)
        etag = hashlib.md5(body).hexdigest()
        if mood == "damaged":
            body = body[:-1] + b"?"
        first = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        if "Range" in self.headers and status == 200:
            status = 206
        self.send_response(status)
        self.send_header("Content-Range", f"bytes {first}-{len(body) - 1}/{len(body)}")
        body = body[first:]
        self.send_header("ETag", f'"{etag}"')
        self.send_header("Last-Modified", "Thu, 26 Nov 2026 00:00:00 GMT")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if mood == "cut off" else body)
        if mood == "cut off":
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def moody(monkeypatch):
    Moody.moods, Moody.asked = {}, Counter()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Moody)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{server.server_port}")
    quick = objects.RETRIES | {"max_retries": 3}
    quick["backoff"] = {**objects.RETRIES["backoff"], "init_backoff": timedelta(milliseconds=1)}
    monkeypatch.setattr(objects, "RETRIES", quick)
    yield Moody
    server.shutdown()


@pytest.mark.parametrize("mood", ["slow down", "cut off"])
def test_what_fails_for_a_moment_is_asked_for_again(moody, tmp_path, mood):
    moody.moods["00001.jpg"] = [mood, mood, "good"]
    assert download(["00001"], tmp_path, COUNTS) == (["00001"], [])
    assert photo_path(tmp_path, "00001").read_bytes() == b"photo 00001.jpg" * 1000
    assert moody.asked["00001.jpg"] == 3


@pytest.mark.parametrize("mood", ["slow down", "denied", "damaged", "cut off"])
def test_one_photo_that_never_comes_stops_no_other_and_none_is_taken_for_whole(
    moody, tmp_path, mood
):
    moody.moods["00002.jpg"] = [mood]
    with pytest.raises(DataError, match=r"not be fetched \(1\).*00002\.jpg") as raised:
        download([f"{number:05d}" for number in range(1, 6)], tmp_path, COUNTS)
    assert "\n" not in str(raised.value)
    there = sorted(path.stem for path in (tmp_path / "bin-images").iterdir())
    assert there == ["00001", "00003", "00004", "00005"]
    assert not (tmp_path / "selection.json").exists()
    moody.moods.clear()
    photos, _ = download([f"{number:05d}" for number in range(1, 6)], tmp_path, COUNTS)
    assert len(photos) == 5
    assert moody.asked["00001.jpg"] == 1, "existing files are not fetched again"


def test_with_many_failures_it_does_not_go_on(moody, tmp_path, monkeypatch):
    monkeypatch.setattr(objects, "MOST_FAILURES", 3)
    ids = [f"{number:05d}" for number in range(1000)]
    moody.moods |= {f"{photo_id}.json": ["denied"] for photo_id in ids}
    with pytest.raises(DataError, match=r"not be fetched \(4\)"):
        download(ids, tmp_path, COUNTS, requests=2)
    assert moody.asked.total() <= 5


def test_one_of_many_that_never_comes_is_left_out_and_tried_again(moody, tmp_path, capsys):
    ids = [f"{number:05d}" for number in range(200)]
    moody.moods |= {"00002.json": ["denied"], "00003.jpg": ["damaged"]}
    photos, left_out = download(ids, tmp_path, COUNTS)
    assert len(photos) == 198
    reason = "could not be fetched"
    assert left_out == [LeftOut("00002", reason), LeftOut("00003", reason)]
    assert (
        "warning: left out photos that could not be fetched (2), the first"
        in capsys.readouterr().err
    )
    moody.moods.clear()
    photos, _ = download(ids, tmp_path, COUNTS)
    assert len(photos) == 200


def test_one_of_many_that_never_comes_does_not_end_a_share(moody, tmp_path, capsys):
    ids = [f"{number:05d}" for number in range(200)]
    moody.moods |= {"00002.json": ["denied"], "00003.jpg": ["damaged"]}
    rows = read_metadata(ids, public_bucket("bins"), COUNTS, 16).splitlines()
    assert rows[2] == "00002,,,could not be fetched"
    assert sum(row.endswith(",") for row in rows) == 199
    fetch_photos(ids, tmp_path, public_bucket("bins"), 16)
    assert len(list((tmp_path / "bin-images").iterdir())) == 199
    told = capsys.readouterr().err
    for left_out in (1, 2):
        assert f"({left_out}), the first because of s3://bins/" in told


def test_a_full_disk_is_told_as_such(put, tmp_path, monkeypatch):
    put_bin(put, "00001")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "write_atomic", full)
    with pytest.raises(OSError, match="No space left"):
        download(["00001"], tmp_path, COUNTS)
