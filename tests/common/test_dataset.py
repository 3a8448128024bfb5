from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.dataset import Dataset, DatasetError, in_validation, open_dataset
from data_prep.pack import pack
from data_prep.split import split_folder
from data_prep.synthetic import synthesize
from tests.support.packed import COUNTS, SIZE, draw_photo, draw_photos, write_packed

TRAIN, TEST = draw_photos(7), draw_photos(4, first=7)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_packed(tmp_path / "squares", TRAIN, TEST, photos_a_shard=3)


def one_line(error: pytest.ExceptionInfo[DatasetError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def test_each_side_is_read_back_photo_by_photo_in_the_order_of_its_shards(folder: Path) -> None:
    dataset = open_dataset(folder)
    assert (dataset.name, dataset.size, dataset.counts) == ("squares", SIZE, COUNTS)
    assert list(dataset.photos("train")) == TRAIN
    assert list(dataset.photos("test")) == TEST


def test_what_data_preparation_packs_is_read_here(tmp_path: Path) -> None:
    synthesize(tmp_path, 60, 0, sides=range(64, 65), workers=1)
    split = split_folder(tmp_path, range(1, 6))
    pack(tmp_path, "bins", size=SIZE, shard_mb=0.05, workers=1)
    dataset = open_dataset(tmp_path / "datasets" / "bins")
    for side in ("train", "test"):
        read = [(photo.id, photo.count, photo.group) for photo in dataset.photos(side)]
        assert sorted(read) == sorted(
            (photo.id, photo.count, photo.group) for photo in split.photos if photo.side == side
        )
        assert len(read) == len(dataset.index(side))


def test_ids_and_groups_stay_text(tmp_path: Path) -> None:
    photos = [draw_photo(photo_id, 1, group) for photo_id, group in [("00001", "01"), ("1", "1")]]
    dataset = open_dataset(write_packed(tmp_path, photos, photos))
    assert [(photo.id, photo.group) for photo in dataset.photos("train")] == [
        ("00001", "01"),
        ("1", "1"),
    ]


def test_a_missing_folder_or_manifest_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for folder in (tmp_path / "nowhere", tmp_path, file):
        with pytest.raises(DatasetError, match=r"manifest\.json is missing") as error:
            open_dataset(folder)
        assert f"no data set in {folder}" in one_line(error)


@pytest.mark.parametrize(
    "content", [b"", b'{"name": "squ', b"\xff\xfe\x00", b"[]", b"3", b"{}", b'{"name": "squares"}']
)
def test_a_damaged_manifest_is_one_line(folder: Path, content: bytes) -> None:
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(DatasetError) as error:
        open_dataset(folder)
    assert str(folder / "manifest.json") in one_line(error)


def read_all(dataset: Dataset) -> None:
    for _ in dataset.photos("train"):
        pass


def test_a_missing_shard_is_one_line(folder: Path) -> None:
    shard = folder / "train-00001.tar"
    shard.unlink()
    with pytest.raises(DatasetError, match="missing") as error:
        read_all(open_dataset(folder))
    assert str(shard) in one_line(error)


SHARD_BYTES = 20480  # of three photos


@pytest.mark.parametrize("kept", [0, 511, 512, 700, 5120, SHARD_BYTES - 512, SHARD_BYTES - 1])
def test_a_shard_cut_short_is_one_line_and_never_a_smaller_data_set(
    folder: Path, kept: int
) -> None:
    shard = folder / "train-00001.tar"
    content = shard.read_bytes()
    assert len(content) == SHARD_BYTES
    shard.write_bytes(content[:kept])
    with pytest.raises(DatasetError, match="damaged") as error:
        read_all(open_dataset(folder))
    assert str(shard) in one_line(error)


@pytest.mark.parametrize("place", [0, 600, 5120, SHARD_BYTES - 1])
def test_a_flipped_bit_anywhere_in_a_shard_is_found(folder: Path, place: int) -> None:
    shard = folder / "train-00000.tar"
    content = bytearray(shard.read_bytes())
    content[place] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DatasetError, match="damaged"):
        read_all(open_dataset(folder))


def test_the_fingerprint_follows_the_photos_and_not_the_folder(tmp_path: Path) -> None:
    first = open_dataset(write_packed(tmp_path / "a", TRAIN, TEST)).manifest_sha256
    moved = open_dataset(write_packed(tmp_path / "b", TRAIN, TEST)).manifest_sha256
    other = open_dataset(write_packed(tmp_path / "c", TRAIN[:-1], TEST)).manifest_sha256
    assert moved == first != other


@given(st.text(), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_share_only_adds_groups_to_validation(group: str, a: float, b: float) -> None:
    small, large = sorted((a, b))
    assert in_validation(group, large) >= in_validation(group, small)
    assert in_validation(group, 1)
    assert not in_validation(group, 0)


@given(st.integers(0, 10**9), st.floats(0.05, 0.95))
def test_the_share_of_groups_held_out_is_about_the_fraction(first: int, fraction: float) -> None:
    held_out = sum(
        in_validation(f"B{number:09d}", fraction) for number in range(first, first + 500)
    )
    assert held_out / 500 == pytest.approx(fraction, abs=0.12)


def test_which_groups_are_held_out_never_changes() -> None:
    groups = [f"product {number}" for number in range(40)]
    held_out = [group for group in groups if in_validation(group, 0.1)]
    assert held_out == [f"product {number}" for number in (8, 12, 17, 35, 36, 39)]


def test_photos_are_read_at_random_as_they_are_read_in_order(folder: Path) -> None:
    index = open_dataset(folder).index("train", "test")
    photos = [*TRAIN, *TEST]
    assert len(index) == len(photos)
    assert index.ids == [photo.id for photo in photos]
    assert index.groups == [photo.group for photo in photos]
    assert index.counts.tolist() == [photo.count for photo in photos]
    for row in reversed(range(len(photos))):
        assert index.jpeg(row) == photos[row].jpeg


def test_a_subset_holds_the_chosen_photos_in_their_order(folder: Path) -> None:
    rows = np.array([number % 2 == 1 for number in range(len(TRAIN))])
    index = open_dataset(folder).index("train").subset(rows)
    chosen = TRAIN[1::2]
    assert index.ids == [photo.id for photo in chosen]
    assert [index.jpeg(row) for row in range(len(index))] == [photo.jpeg for photo in chosen]


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_an_index_of_a_shard_that_is_not_whole_is_refused(folder: Path, damage: str) -> None:
    shard = sorted(folder.glob("train-*.tar"))[1]
    if damage == "missing":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:-1024])
    with pytest.raises(DatasetError, match=damage) as error:
        open_dataset(folder).index("train")
    assert shard.name in one_line(error)
