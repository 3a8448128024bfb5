"""Photos of the public bucket are selected by a list, or by listing the bucket."""

from collections import Counter

import boto3
import pytest
from hypothesis import given
from hypothesis import strategies as st
from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends

from data_prep.folder import DataError
from data_prep.objects import PUBLIC_BUCKET
from data_prep.source import list_bucket, read_list, spread
from data_prep.split import side_of


@pytest.fixture
def bucket(served_s3):
    client = boto3.client("s3")
    client.create_bucket(Bucket=PUBLIC_BUCKET)
    return client


def test_only_metadata_directly_under_its_prefix_is_listed(bucket):
    for key in ("metadata/00001.json", "metadata/old/7.json", "metadata/read.me", "other.json"):
        bucket.put_object(Bucket=PUBLIC_BUCKET, Key=key, Body=b"{}")
    assert list(list_bucket(PUBLIC_BUCKET)) == ["00001"]


def test_more_ids_than_a_page_has_are_all_listed(bucket):
    ids = [f"{number:05d}" for number in range(0, 30_000, 25)]
    for photo_id in ids:
        key = f"metadata/{photo_id}.json"
        s3_backends[DEFAULT_ACCOUNT_ID]["aws"].put_object(PUBLIC_BUCKET, key, b"{}")
    assert list(list_bucket(PUBLIC_BUCKET)) == ids


@given(st.sets(st.text()), st.integers(0, 20))
def test_the_same_photos_are_first_in_whatever_order_they_are_listed(ids, more):
    found = spread(ids)
    assert spread(reversed(found)) == found
    assert sorted(found) == sorted(ids)
    added = spread({*ids, *map(str, range(more))})
    assert [photo for photo in added if photo in ids] == found


def test_a_sample_is_of_all_the_bucket_and_of_both_sides_of_a_split():
    sample = spread(f"{number:06d}" for number in range(10_000))[:1000]
    thousands = Counter(photo[2] for photo in sample)
    assert all(60 < thousands[digit] < 140 for digit in "0123456789"), thousands
    for group in ("{}", "id-{}", "photo-{}"):
        tested = sum(side_of(group.format(photo), 0.2) == "test" for photo in sample)
        assert 150 < tested < 250


def test_ids_come_one_a_line_each_once(tmp_path):
    path = tmp_path / "ids.txt"
    path.write_text("00001\n1\n\n  00001\n9\n")
    assert read_list(path) == ["00001", "1", "9"]


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
