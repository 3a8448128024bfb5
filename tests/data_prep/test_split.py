import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.folder import (
    Bin,
    DataError,
    LeftOut,
    metadata_path,
    parse_metadata,
    photo_path,
    write_selection,
)
from data_prep.split import (
    Photo,
    check_enough,
    describe,
    group_by_asin,
    read_split,
    side_of,
    split_bins,
    split_folder,
    twins,
)

COUNTS = range(1, 6)
FEW_ASINS = st.lists(st.sampled_from([f"B{number:02}" for number in range(30)]), max_size=4)
PHOTO_IDS = st.text("0123456789", min_size=1, max_size=6)
BINS = st.dictionaries(PHOTO_IDS, FEW_ASINS, max_size=40)


@given(BINS)
def test_no_product_is_on_both_sides(asins):
    groups = group_by_asin(asins)
    sides = {}
    for photo_id, group in groups.items():
        for asin in asins[photo_id]:
            assert sides.setdefault(asin, side_of(group, 0.5)) == side_of(group, 0.5)


@given(BINS, st.randoms(use_true_random=False))
def test_the_order_of_the_photos_does_not_matter(asins, shuffler: random.Random):
    items = list(asins.items())
    shuffler.shuffle(items)
    shuffled = {photo_id: shuffler.sample(listed, len(listed)) for photo_id, listed in items}
    assert group_by_asin(shuffled) == group_by_asin(asins)


@given(BINS, BINS)
def test_more_photos_move_none_except_by_joining_their_groups(asins, more):
    before = group_by_asin(asins)
    after = group_by_asin({**more, **asins})
    for photo_id, group in before.items():
        if not _reached(photo_id, asins, more):
            assert after[photo_id] == group


def _reached(photo_id, asins, more):
    """Tell by a graph search, not by union-find, whether a new photo is in the photo's group."""
    everything = {**more, **asins}
    seen, border = {photo_id}, [photo_id]
    while border:
        products = set(everything[border.pop()])
        near = [
            other for other in everything if other not in seen and products & {*everything[other]}
        ]
        seen.update(near)
        border.extend(near)
    return any(other not in asins for other in seen)


@given(BINS)
def test_photos_of_one_group_are_exactly_those_linked_by_products(asins):
    groups = group_by_asin(asins)
    for photo_id, listed in asins.items():
        for other, products in asins.items():
            if set(listed) & set(products):
                assert groups[photo_id] == groups[other]
            elif photo_id != other and not listed:
                assert groups[photo_id] != groups[other]
    names = set(groups.values())
    assert len(names) == _components(asins)


def _components(asins):
    sets = []
    for photo_id, listed in asins.items():
        joined = {f"photo {photo_id}", *listed}
        apart = [one for one in sets if not one & joined]
        sets = [*apart, joined.union(*(one for one in sets if one & joined))]
    return len(sets)


def test_a_photo_without_products_is_a_group_of_its_own_even_beside_a_like_named_product():
    assert group_by_asin({"1": [], "00001": [], "2": ["1"]}) == {
        "1": "photo-1",
        "00001": "photo-00001",
        "2": "1",
    }


def test_a_side_is_the_first_bits_of_the_name_s_sha256():
    # From `printf B003 | sha256sum`, for example: 1e1f…, a share of 0.118. Another hash would move
    # photos that someone has trained on.
    first_bits = {"B000": 0xFD82, "B001": 0x478C, "B002": 0x556E, "B003": 0x1E1F, "B004": 0x605C}
    for fraction in (0.1, 0.2, 0.3, 0.5):
        for name, bits in first_bits.items():
            assert side_of(name, fraction) == ("test" if bits / 2**16 < fraction else "train")


def test_the_test_side_gets_about_its_fraction_of_the_groups():
    sides = [side_of(f"B{number:03}", 0.2) for number in range(2000)]
    assert 0.17 < sides.count("test") / len(sides) < 0.23


def add_bin(folder, photo_id, count, asins=(), photo=True):
    path = metadata_path(folder, photo_id)
    path.parent.mkdir(exist_ok=True, parents=True)
    products = {asin: {"asin": asin, "quantity": 1} for asin in asins}
    path.write_text(json.dumps({"BIN_FCSKU_DATA": products, "EXPECTED_QUANTITY": count}))
    if photo:
        photo_path(folder, photo_id).parent.mkdir(exist_ok=True)
        photo_path(folder, photo_id).write_bytes(b"not looked at by the split")


def test_every_photo_gets_a_side_or_a_reason(tmp_path):
    ids = [f"{number:05}" for number in range(100)]
    for number, photo_id in enumerate(ids):
        add_bin(tmp_path, photo_id, number % 2 + 1, [f"B{number}"])
    add_bin(tmp_path, "none", 0)
    add_bin(tmp_path, "lost", 1, photo=False)
    metadata_path(tmp_path, "bad").write_text("{")
    add_bin(tmp_path, "not-asked-for", 1)
    left_out = [LeftOut("absent", "not in the bucket"), LeftOut("none", "count out of range")]
    write_selection(tmp_path, [*ids, "lost", "bad", "gone"], left_out)
    result = split_folder(tmp_path, range(1, 3))
    # Packing, not splitting, finds out that a photo is missing.
    assert [photo.id for photo in result.photos] == [*ids, "lost"]
    assert result.left_out == [
        LeftOut("absent", "not in the bucket"),
        LeftOut("bad", "metadata is not JSON"),
        LeftOut("gone", "metadata missing"),
        LeftOut("none", "count out of range"),
    ]
    assert read_split(tmp_path) == result


def test_split_without_a_download_says_what_to_run(tmp_path):
    with pytest.raises(DataError, match=r"download. first"):
        split_folder(tmp_path, COUNTS)


def test_a_failed_split_leaves_no_older_one_behind(tmp_path):
    for number in range(40):
        add_bin(tmp_path, str(number), 1)
    write_selection(tmp_path, map(str, range(40)), [])
    split_folder(tmp_path, range(1, 2))
    with pytest.raises(DataError, match="no train photo with count 2"):
        split_folder(tmp_path, range(1, 3))
    assert not (tmp_path / "split.json").exists()


def test_photos_that_others_move_from_train_to_test_are_told(tmp_path, capsys):
    names = [f"B{number:02}" for number in range(50)]
    first_of_test = next(name for name in names if side_of(name, 0.5) == "test")
    trained = next(name for name in reversed(names) if side_of(name, 0.5) == "train")
    ids = [f"{number:02}" for number in range(50)]
    for photo_id, name in zip(ids, names, strict=True):
        add_bin(tmp_path, photo_id, 1, [name])
    write_selection(tmp_path, ids, [])
    for _ in range(2):
        split_folder(tmp_path, range(1, 2), test_fraction=0.5)
        assert "warning" not in capsys.readouterr().err
    add_bin(tmp_path, "joins", 1, [first_of_test, trained])
    write_selection(tmp_path, [*ids, "joins"], [])
    split_folder(tmp_path, range(1, 2), test_fraction=0.4)
    assert "warning" not in capsys.readouterr().err, "a split with another fraction is not compared"
    write_selection(tmp_path, ids, [])
    split_folder(tmp_path, range(1, 2), test_fraction=0.5)
    write_selection(tmp_path, [*ids, "joins"], [])
    split_folder(tmp_path, range(1, 2), test_fraction=0.5)
    assert "warning: 1 photos have moved from train to test" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("counts", "least", "says"),
    [
        (range(1, 2), 3, "only 2 photos are left, --min-photos requires 3"),
        (range(1, 3), 1, "no train photo with count 2"),
        (range(0, 2), 1, "no train photo with count 0"),
    ],
)
def test_too_little_is_one_clear_line(counts, least, says):
    photos = [Photo("1", 1, "a", "train"), Photo("2", 1, "b", "test")]
    with pytest.raises(DataError, match=says) as raised:
        check_enough(photos, counts, least)
    assert "\n" not in str(raised.value)
    check_enough(photos, range(1, 2), 2)


def test_a_random_split_says_how_many_test_photos_training_has_seen():
    # Pairs of photos share a product.
    bins = {f"{number:03d}": Bin(1 + number % 2, (f"asin-{number // 2}",)) for number in range(400)}
    photos = split_bins(bins, [], range(1, 3), method="random", test_fraction=0.2).photos
    assert 50 < sum(photo.side == "test" for photo in photos) < 110
    assert twins(photos) > 30
    assert f"warning: {twins(photos)} of " in describe(photos)
    grouped = split_bins(bins, [], range(1, 3), method="group", test_fraction=0.2).photos
    assert twins(grouped) == 0
    assert "warning" not in describe(grouped)


@pytest.mark.parametrize("method", ["group", "random", "purge"])
@given(st.integers(1, 200))
def test_more_photos_move_none_that_share_nothing_with_them(method, more):
    bins = {f"{number:03d}": Bin(1, (f"asin-{number // 2}",)) for number in range(200)}
    added = {f"new-{number}": Bin(1, (f"other-{number}",)) for number in range(more)}
    before, after = (
        split_bins(some, [], range(1, 2), method=method, test_fraction=0.2).photos
        for some in (bins, bins | added)
    )
    assert set(before) <= set(after)


def test_a_group_of_most_photos_is_warned_of():
    bins = {f"{number}": Bin(1, ("common",) if number < 50 else ()) for number in range(100)}
    photos = split_bins(bins, [], range(1, 2), method="group", test_fraction=0.2).photos
    assert "warning: 50 photos (50%) are connected" in describe(photos)
    assert "--split purge" in describe(photos)


BINS = st.dictionaries(
    st.text("0123456789", min_size=1, max_size=4),
    st.lists(st.sampled_from([f"B{number}" for number in range(60)]), max_size=4, unique=True),
    max_size=80,
)


@given(BINS)
def test_a_purged_split_trains_on_no_product_of_the_test_and_loses_no_photo(asins):
    bins = {photo_id: Bin(1, tuple(sorted(found))) for photo_id, found in asins.items()}
    split = split_bins(bins, [], range(1, 2), method="purge", test_fraction=0.1)
    products = {
        side: {asin for photo in split.photos if photo.side == side for asin in asins[photo.id]}
        for side in ("train", "test")
    }
    assert products["train"].isdisjoint(products["test"])
    assert {one.reason for one in split.left_out} <= {"shares a product with a test photo"}
    ids = [photo.id for photo in split.photos] + [one.id for one in split.left_out]
    assert sorted(ids) == sorted(asins)


@given(BINS, BINS)
def test_a_purged_split_never_moves_a_photo_from_training_to_the_test(asins, more):
    def sides(found):
        bins = {photo_id: Bin(1, tuple(sorted(some))) for photo_id, some in found.items()}
        split = split_bins(bins, [], range(1, 2), method="purge", test_fraction=0.1)
        return {photo.id: photo.side for photo in split.photos}

    before, after = sides(asins), sides(more | asins)
    assert {one for one, side in after.items() if side == "test" and one in asins} == {
        one for one, side in before.items() if side == "test"
    }


def test_a_purged_split_parts_what_hangs_together():
    dice = random.Random(0)
    bins = {
        f"{number:05d}": Bin(1, tuple({f"B{dice.randrange(3000)}" for _ in range(3)}))
        for number in range(4000)
    }
    grouped = split_bins(bins, [], range(1, 2), method="group", test_fraction=0.03).photos
    assert "are connected" in describe(grouped)
    split = split_bins(bins, [], range(1, 2), method="purge", test_fraction=0.03)
    sides = [photo.side for photo in split.photos]
    assert 60 < sides.count("test") < 180
    assert sides.count("train") > 2400
    assert "warning" not in describe(split.photos)


def test_a_product_is_known_by_its_asin_whoever_sells_it():
    products = {
        "B1": {"asin": "B1"},
        "ZZX": {"asin": "B2"},
        "B3": {},
        "B4": None,
        "B5": {"asin": 5},
    }
    text = json.dumps({"EXPECTED_QUANTITY": 5, "BIN_FCSKU_DATA": products}).encode()
    assert parse_metadata(text).asins == ("B1", "B2", "B3", "B4", "B5")
