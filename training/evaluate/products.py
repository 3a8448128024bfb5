"""How well photos are counted with the products of their records."""

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.dataset import PhotoIndex
from serving.container.decision import Decision, decide
from training.evaluate.metrics import accuracy_by, evaluate, with_interval


def evaluate_with_products(
    of_photos: NDArray[np.float32],
    with_products: NDArray[np.float32],
    photos: PhotoIndex,
    fitted: PhotoIndex,
    counts: list[int],
    majority: int,
    decision: Decision,
) -> dict[str, Any]:
    """Return the metrics of the probabilities `with_products` [photos, classes].

    `photo_alone` has those of the probabilities `of_photos`, for the same photos. `by_products` has
    the accuracy by the number of products. `number_alone` is a baseline without photo and sizes:
    the most frequent count of the `fitted` photos with as many products.
    """
    numbers = [len(products) for products in photos.products]
    frequent = _most_frequent(fitted)
    answers = np.array([frequent.get(number, majority) for number in numbers])
    return {
        **evaluate(with_products, photos.counts, counts, majority, decision),
        "photo_alone": evaluate(of_photos, photos.counts, counts, majority, decision),
        "by_products": accuracy_by(
            numbers, decide(with_products, counts, decision) == photos.counts
        ),
        "number_alone": with_interval((answers == photos.counts).astype(float)),
    }


def _most_frequent(photos: PhotoIndex) -> dict[int, int]:
    """Return number of products → most frequent count, the smaller one if there are several."""
    pairs = Counter(zip(map(len, photos.products), photos.counts.tolist(), strict=True))
    best: dict[int, int] = {}
    for (number, count), _ in sorted(pairs.items(), key=lambda pair: (-pair[1], pair[0])):
        best.setdefault(number, count)
    return best
