"""How well the counts are right, with intervals: what metrics.json holds."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

BOOTSTRAP_SAMPLES = 2000


def evaluate(
    probabilities: NDArray[np.float32], truth: NDArray[np.int64], counts: list[int], majority: int
) -> dict[str, Any]:
    """Metrics of `probabilities` [photos, classes] against the true counts `truth` [photos].

    Class k stands for `counts[k]`. `majority` is the commonest count of the training side: the
    answer that needs no model. Intervals are percentile bootstraps over photos (Efron 1979), 95 %;
    the difference is paired, both answers judged on the same photos.
    """
    classes = np.array(counts)
    predicted = classes[probabilities.argmax(axis=1)]
    expected = probabilities @ classes
    right = (predicted == truth).astype(float)
    majority_right = (truth == majority).astype(float)
    confusion = [[int(((truth == t) & (predicted == p)).sum()) for p in counts] for t in counts]
    return {
        "photos": len(truth),
        "accuracy": _with_interval(right),
        "majority": {"count": majority, **_with_interval(majority_right)},
        "accuracy_minus_majority": _with_interval(right - majority_right),
        "within_one": float((abs(predicted - truth) <= 1).mean()),
        "mae": float(abs(predicted - truth).mean()),
        "rmse_of_expected": float(np.sqrt(((expected - truth) ** 2).mean())),
        "confusion": {"counts": counts, "rows_true_columns_predicted": confusion},
    }


def _with_interval(values: NDArray[np.float64]) -> dict[str, float]:
    """Mean of `values` and its 95 % bootstrap interval."""
    # Few values occur, so that how often each is drawn says all: no table of every draw.
    levels, photos = np.unique(values, return_counts=True)
    generator = np.random.default_rng(0)
    draws = generator.multinomial(len(values), photos / len(values), BOOTSTRAP_SAMPLES)
    low, high = np.percentile(draws @ levels / len(values), [2.5, 97.5])
    return {"value": float(values.mean()), "low": float(low), "high": float(high)}
