import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from training.evaluate.inventory_check import (
    auroc,
    check_inventory,
    neighbours,
    share_found,
    wrong_records,
)

COUNTS = [1, 2, 3]


@pytest.mark.parametrize(
    ("photo_id", "expected"),
    [
        ("00001", {"00002", "00000"}),
        ("1", {"2", "0"}),
        ("00009", {"00010", "00008"}),
        ("9", {"10", "8"}),
        ("999", {"1000", "998"}),
        ("1000", {"1001", "0999", "999"}),
        ("01000", {"01001", "00999"}),
        ("99999", {"100000", "99998"}),
        ("0", {"1"}),
        ("photo-7", set()),
        ("٣", set()),  # a digit to Python, in no id
        ("", set()),
    ],
)
def test_neighbours_are_ids_not_numbers(photo_id: str, expected: set[str]) -> None:
    assert set(neighbours(photo_id)) == expected


@given(st.from_regex(r"0{0,3}[0-9]{1,4}", fullmatch=True))
def test_who_is_a_neighbour_has_one(photo_id: str) -> None:
    assert photo_id not in neighbours(photo_id)
    for other in neighbours(photo_id):
        assert photo_id in neighbours(other)


def test_a_wrong_record_is_the_neighbours_count_if_it_is_one_off_and_of_the_same_bin() -> None:
    photos = {
        "00001": ("a", 2),  # next: 3
        "00002": ("a", 3),  # before: 2, next: 3
        "00003": ("a", 3),  # before and next: no other count, two more
        "00004": ("a", 1),
        "00005": ("b", 2),  # another bin before, none of its own after
        "1": ("a", 1),  # not the photo 00001, whose neighbour is 00002
        "00007": ("c", 1),
        "00008": ("c", 2),
    }
    ids, (groups, truth) = list(photos), zip(*photos.values(), strict=True)
    found = wrong_records(ids, groups, np.array(truth))
    assert {ids[row]: count for row, count in found.items()} == {
        "00001": 3,
        "00002": 2,
        "00007": 2,
        "00008": 1,
    }


def test_with_two_neighbours_one_is_chosen_and_always_the_same_one() -> None:
    ids = [f"{number:05d}" for number in range(300)]
    truth = np.arange(300) % 3 + 1  # 1, 2, 3, 1, …: only a 2 is one off both sides
    found = wrong_records(ids, ["bin"] * 300, truth)
    chosen = [found[row] for row in range(300) if truth[row] == 2]
    assert 20 < chosen.count(1) < 80
    assert chosen.count(1) + chosen.count(3) == 100
    # Neither the order of the photos nor other photos change it.
    backwards = wrong_records(ids[200::-1], ["bin"] * 201, truth[200::-1])
    assert all(backwards[200 - row] == found[row] for row in range(1, 200))


def counted(values: list[int], size: int) -> NDArray[np.float64]:
    return np.bincount(values, minlength=size).astype(float)


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=20),
    st.lists(st.integers(0, 5), min_size=1, max_size=20),
)
def test_auroc_is_the_share_of_pairs_in_the_right_order(right: list[int], wrong: list[int]) -> None:
    pairs = [(w < r) + (w == r) / 2 for w in wrong for r in right]
    assert auroc(counted(right, 6), counted(wrong, 6)) == pytest.approx(np.mean(pairs))


def test_the_share_found_worked_out_by_hand() -> None:
    right, wrong = np.array([0, 10, 30.0]), np.array([20, 10, 10.0])
    # Looked at, rank by rank: 2, then 9 + 1, then 27 + 1, of 40.
    assert share_found(right, wrong, 2 / 40) == pytest.approx(20 / 40)
    assert share_found(right, wrong, 1 / 40) == pytest.approx(10 / 40)
    assert share_found(right, wrong, 7 / 40) == pytest.approx(25 / 40)  # half of a tie
    assert share_found(right, wrong, 1) == 1


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=20),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_who_looks_at_more_finds_no_less(
    ranks: list[tuple[int, int]], one: float, other: float
) -> None:
    right, wrong = np.array(ranks, float).T + 0.1
    less, more = sorted((one, other))
    assert (
        0 <= share_found(right, wrong, less) <= share_found(right, wrong, more) + 1e-9 <= 1 + 2e-9
    )


def bins(number: int) -> tuple[list[str], list[str], NDArray[np.int64]]:
    """Ids, groups and counts of `number` bins that were photographed twice, 1 and 2 items."""
    ids = [f"{photo:05d}" for one in range(number) for photo in (3 * one, 3 * one + 1)]
    groups = [f"bin {one}" for one in range(number) for _ in range(2)]
    return ids, groups, np.array([1, 2] * number)


def test_who_counts_right_finds_every_wrong_record() -> None:
    ids, groups, truth = bins(50)
    answers = np.eye(3, dtype=np.float32)[truth - 1]
    found = check_inventory(answers, truth, COUNTS, ids=ids, groups=groups)
    assert (found["photos"], found["groups"], found["wrong_share"]) == (100, 50, 0.1)
    assert found["auroc"] == {"value": 1, "low": 1, "high": 1}
    shares = {one["looked_at"]: one["value"] for one in found["found"]}
    assert shares == {0.05: pytest.approx(0.5), 0.1: pytest.approx(1), 0.2: pytest.approx(1)}


def test_who_knows_nothing_finds_as_much_as_is_looked_at() -> None:
    ids, groups, truth = bins(20)
    answers = np.full((40, 3), 1 / 3, np.float32)
    found = check_inventory(answers, truth, COUNTS, ids=ids, groups=groups)
    assert found["auroc"] == {"value": 0.5, "low": 0.5, "high": 0.5}
    for one in found["found"]:
        assert one["value"] == pytest.approx(one["looked_at"])


def test_the_weights_stand_for_every_choice_of_a_tenth() -> None:
    """The mean of what is found over many random tenths, each looked through photo by photo."""
    photos = 400
    ids, groups, truth = bins(photos // 2)
    random = np.random.default_rng(3)
    logits = random.normal(size=(photos, 3)) + np.eye(3)[truth - 1]
    answers = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    found = check_inventory(answers.astype(np.float32), truth, COUNTS, ids=ids, groups=groups)
    shares = []
    for _ in range(300):
        wrong = random.permutation(photos) < photos // 10
        record = np.where(wrong, 3 - truth, truth)
        order = answers[np.arange(photos), record - 1].argsort()
        shares.append(wrong[order[: photos // 5]].sum() / wrong.sum())
    assert found["found"][2]["value"] == pytest.approx(np.mean(shares), abs=0.02)


def test_intervals_are_wider_when_photos_come_in_fewer_groups() -> None:
    ids, groups, truth = bins(100)
    random = np.random.default_rng(0)
    answers = random.dirichlet([1, 1, 1], 200).astype(np.float32)
    answers[1::2] = answers[::2, [1, 0, 2]]  # both photos of a bin are judged alike
    by_bin = check_inventory(answers, truth, COUNTS, ids=ids, groups=groups)["auroc"]
    merged = [f"shelf {row // 40}" for row in range(200)]
    by_shelf = check_inventory(answers, truth, COUNTS, ids=ids, groups=merged)["auroc"]
    assert by_bin["value"] == by_shelf["value"]
    assert by_bin["low"] < by_bin["value"] < by_bin["high"]
    assert by_shelf != by_bin


def test_without_a_neighbour_there_is_nothing_to_say() -> None:
    found = check_inventory(
        np.full((2, 3), 1 / 3, np.float32),
        np.array([1, 2]),
        COUNTS,
        ids=["00001", "00003"],
        groups=["a", "a"],
    )
    assert found == {"photos": 0}


@settings(deadline=None, max_examples=8)
@given(st.integers(0, 10_000))
def test_every_figure_lies_in_its_interval(seed: int) -> None:
    ids, groups, truth = bins(15)
    answers = np.random.default_rng(seed).dirichlet([1, 1, 1], 30).astype(np.float32)
    found = check_inventory(answers, truth, COUNTS, ids=ids, groups=groups)
    for one in (found["auroc"], *found["found"]):
        assert 0 <= one["low"] <= one["value"] <= one["high"] <= 1
    assert found == check_inventory(answers, truth, COUNTS, ids=ids, groups=groups)
