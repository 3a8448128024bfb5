import io
import json
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from data_prep.folder import DataError, metadata_path, parse_metadata, photo_path
from data_prep.split import group_by_asin
from data_prep.synthetic import BIN_INCHES, BinPlan, draw_shot, plan_bin, synthesize

SMALL = range(64, 97)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    return folder, synthesize(folder, 300, 0, sides=SMALL, workers=2)


def all_bytes(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.*")}


def test_the_same_seed_gives_the_same_bytes_whatever_the_number_of_workers(tmp_path):
    synthesize(tmp_path / "one", 12, 7, sides=SMALL, workers=1)
    synthesize(tmp_path / "two", 12, 7, sides=SMALL, workers=2)
    synthesize(tmp_path / "other", 12, 8, sides=SMALL, workers=1)
    assert all_bytes(tmp_path / "one") == all_bytes(tmp_path / "two")
    one, other = all_bytes(tmp_path / "one"), all_bytes(tmp_path / "other")
    assert sum(one[path] == other[path] for path in one if path.parent.name) < 3


def test_more_photos_begin_with_the_same_ones(tmp_path, drawn):
    folder, _ = drawn
    for photo_id in synthesize(tmp_path, 20, 0, sides=SMALL, workers=1):
        assert (
            photo_path(tmp_path, photo_id).read_bytes() == photo_path(folder, photo_id).read_bytes()
        )


def test_photos_and_metadata_look_like_the_public_bucket_s(drawn):
    folder, ids = drawn
    assert len(set(ids)) == 300
    for photo_id in ids:
        with Image.open(photo_path(folder, photo_id)) as image:
            assert (image.format, image.mode) == ("JPEG", "RGB")
            assert set(image.size) <= set(SMALL)
        metadata = json.loads(metadata_path(folder, photo_id).read_text())
        products = metadata["BIN_FCSKU_DATA"]
        assert metadata["EXPECTED_QUANTITY"] == sum(p["quantity"] for p in products.values())
        for asin, product in products.items():
            assert asin == product["asin"]
            assert len(asin) == 10
            for name in ("length", "width", "height"):
                assert product[name]["unit"] == "IN"
                assert 1 < product[name]["value"] < BIN_INCHES[name]
            assert product["weight"]["unit"] == "pounds"
            assert 0 < product["weight"]["value"] < 30


def test_ids_hold_the_trap_of_leading_zeros(drawn):
    _, ids = drawn
    assert {"1", "00001"} <= set(ids)


def test_counts_cover_the_range_and_go_beyond_it(drawn):
    folder, ids = drawn
    counts = [parse_metadata(metadata_path(folder, i).read_bytes()).count for i in ids]
    assert set(counts) == set(range(8))
    assert max(map(counts.count, counts)) < 0.4 * len(counts)


def test_neighbours_share_products_so_that_a_random_split_would_leak(drawn):
    folder, ids = drawn
    bins = [parse_metadata(metadata_path(folder, photo_id).read_bytes()) for photo_id in ids]
    pairs = list(pairwise(bins))
    sharing = [(a, b) for a, b in pairs if set(a.asins) & set(b.asins)]
    assert len(sharing) > 0.4 * len(pairs)
    assert sum(abs(a.count - b.count) == 1 for a, b in sharing) > 0.9 * len(sharing)
    groups = group_by_asin(
        {photo_id: found.asins for photo_id, found in zip(ids, bins, strict=True)}
    )
    assert len(set(groups.values())) > 60


def test_one_item_more_changes_the_picture_more_than_the_noise_does():
    changes, noises = [], []
    for number in range(12):
        plan = plan_bin(1, number)
        full = BinPlan(number, plan.items, (len(plan.items),) * 2)
        less = BinPlan(number, plan.items, (len(plan.items), max(0, len(plan.items) - 1)))
        pictures = [
            draw_shot(1, full, 0, SMALL),
            draw_shot(1, full, 1, SMALL),
            draw_shot(1, less, 1, SMALL),
        ]
        again, twin, fewer = (np.asarray(Image.open(io.BytesIO(p))).astype(float) for p in pictures)
        noises.append(np.abs(again - twin).mean())
        changes.append(np.abs(twin - fewer).mean())
    assert np.median(changes) > 0.5
    assert np.mean(np.array(changes) > 0.1) > 0.8, "an additional item must be visible"
    assert np.median(noises) < 12, "photos of the same items must look alike"


def test_an_item_on_top_of_a_box_is_in_the_picture():
    stacked = [
        plan
        for plan in (plan_bin(1, number) for number in range(60))
        if plan.items[-1:] and plan.items[-1].lift
    ]
    assert stacked
    for plan in stacked:
        count = len(plan.items)
        photos = [
            draw_shot(1, BinPlan(plan.number, plan.items, (n,)), 0, SMALL)
            for n in (count, count - 1)
        ]
        with_it, without = (
            np.asarray(Image.open(io.BytesIO(photo))).astype(int) for photo in photos
        )
        assert (np.abs(with_it - without).max(axis=2) > 15).mean() > 0.01


def test_sides_too_small_to_see_anything_are_refused(tmp_path):
    with pytest.raises(DataError, match="at least 64"):
        synthesize(tmp_path, 1, 0, sides=range(8, 20))
