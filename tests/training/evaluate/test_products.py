"""How well photos are counted with the products of their records."""

from pathlib import Path

import numpy as np
import pytest

from common.dataset import Entry, PhotoIndex
from training.evaluate.products import evaluate_with_products

COUNTS = [1, 2, 3]


def photos(*bins: tuple[int, int]) -> PhotoIndex:
    """Photos of bins, given as (count, number of products)."""
    return PhotoIndex(
        [
            Entry(f"{row:05}", count, "group", Path("shard"), 0, 0, [{}] * number)
            for row, (count, number) in enumerate(bins)
        ]
    )


def test_accuracy_by_number_of_products_and_what_their_number_alone_says() -> None:
    tested = photos((1, 1), (2, 1), (2, 2), (3, 2), (3, 7))
    fitted = photos((1, 1), (1, 1), (2, 1), (2, 2), (3, 2), (3, 2))
    certain = np.eye(3, dtype=np.float32)[[0, 0, 1, 1, 2]]  # the first, third and last are right
    first = np.eye(3, dtype=np.float32)[[0] * 5]  # the first is right
    metrics = evaluate_with_products(first, certain, tested, fitted, COUNTS, 1, "argmax")
    assert metrics["photos"] == 5
    assert metrics["accuracy"]["value"] == pytest.approx(3 / 5)
    assert metrics["photo_alone"]["accuracy"]["value"] == pytest.approx(1 / 5)
    shares = {number: share["value"] for number, share in metrics["by_products"].items()}
    assert shares == {"1": 0.5, "2": 0.5, "7": 1}
    # One product: 1, right once. Two: 3, right once. Seven, unseen: the majority, wrong.
    assert metrics["number_alone"]["value"] == pytest.approx(2 / 5)


def test_of_counts_that_are_equally_frequent_the_smaller_one_is_answered() -> None:
    certain = np.eye(3, dtype=np.float32)[[1]]
    metrics = evaluate_with_products(
        certain, certain, photos((2, 1)), photos((3, 1), (2, 1)), COUNTS, 1, "argmax"
    )
    assert metrics["number_alone"]["value"] == 1
