"""The metrics in metrics.json, with confidence intervals."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.container.decision import DECISIONS, Decision, decide
from training.evaluate.calibration import reliability

BOOTSTRAP_SAMPLES = 2000


def evaluate(
    probabilities: NDArray[np.float32],
    truth: NDArray[np.int64],
    counts: list[int],
    majority: int,
    decision: Decision = "argmax",
) -> dict[str, Any]:
    """Compare `probabilities` [photos, classes] with the true counts `truth` [photos].

    Class k stands for `counts[k]`. `majority` is the most frequent count of the training photos, a
    baseline without a model. Intervals are 95 % percentile bootstrap intervals over photos (Efron
    1979); the difference from the baseline is paired. `recall` omits counts without photos.
    `decisions` has the errors of each decision. `calibration` is that of the most probable count,
    whatever the decision.
    """
    predicted = decide(probabilities, counts, decision)
    error = (predicted - truth).astype(float)
    correct = (error == 0).astype(float)
    classes = np.searchsorted(np.array(counts), truth)
    of_truth = probabilities[np.arange(len(truth)), classes]
    nll = -np.log(np.maximum(of_truth, np.finfo(np.float32).tiny, dtype=np.float64))
    majority_correct = (truth == majority).astype(float)
    intervals = {
        "within_one": with_interval((abs(error) <= 1).astype(float)),
        "mae": with_interval(abs(error)),
        "rmse": _root(with_interval(error**2)),
        "cross_entropy": with_interval(nll),
        "rmse_of_mean": _root(with_interval((_means(probabilities, counts) - truth) ** 2)),
    }
    confusion = [[int(((truth == t) & (predicted == p)).sum()) for p in counts] for t in counts]
    return {
        "photos": len(truth),
        "decision": decision,
        "decisions": {
            name: _errors(decide(probabilities, counts, name) - truth) for name in DECISIONS
        },
        "accuracy": with_interval(correct),
        "majority": {"count": majority, **with_interval(majority_correct)},
        "accuracy_minus_majority": with_interval(correct - majority_correct),
        **{name: interval["value"] for name, interval in intervals.items()},
        "intervals": intervals,
        "recall": accuracy_by(truth.tolist(), error == 0),
        "confusion": {"counts": counts, "rows_true_columns_predicted": confusion},
        "calibration": reliability(probabilities, classes),
    }


def _errors(error: NDArray[np.int64]) -> dict[str, float]:
    return {
        "accuracy": float((error == 0).mean()),
        "within_one": float((abs(error) <= 1).mean()),
        "mae": float(abs(error).mean()),
        "rmse": float((error.astype(float) ** 2).mean() ** 0.5),
    }


def accuracy_by(keys: Sequence[int], correct: NDArray[np.bool_]) -> dict[str, dict[str, float]]:
    """Return, for each of `keys` [photos], its photos and the share of `correct` [photos] ones."""
    of_photo = np.array(keys)
    return {
        str(key): {
            "photos": int((of_photo == key).sum()),
            **with_interval(correct[of_photo == key].astype(float)),
        }
        for key in np.unique(of_photo)
    }


def worst_mistakes(
    probabilities: NDArray[np.float32],
    truth: NDArray[np.int64],
    counts: list[int],
    decision: Decision,
    number: int,
) -> NDArray[np.int64]:
    """Return the rows of at most `number` wrong predictions, the most confident ones first."""
    predicted = decide(probabilities, counts, decision)
    wrong = np.flatnonzero(predicted != truth)
    confidence = probabilities[wrong, np.searchsorted(np.array(counts), predicted[wrong])]
    return wrong[np.argsort(-confidence, kind="stable")[:number]]


def interval_of(value: float, draws: Sequence[float]) -> dict[str, float]:
    """Return `value` with its 95 % percentile interval, from its values in bootstrap samples."""
    low, high = np.percentile(draws, [2.5, 97.5])
    return {"value": float(value), "low": float(low), "high": float(high)}


def _means(probabilities: NDArray[np.float32], counts: Sequence[int]) -> NDArray[np.float64]:
    return probabilities.astype(np.float64) @ np.array(counts, np.float64)


def with_interval(values: NDArray[np.float64]) -> dict[str, float]:
    """Return the mean of `values` and its 95 % bootstrap interval."""
    # A multinomial draw of the distinct values equals resampling. One draw at a time saves memory,
    # as the errors of means are nearly all distinct.
    levels, photos = np.unique(values, return_counts=True)
    shares = photos / len(values)
    generator = np.random.default_rng(0)
    means = [
        float(generator.multinomial(len(values), shares) @ levels) / len(values)
        for _ in range(BOOTSTRAP_SAMPLES)
    ]
    return interval_of(values.mean(), means)


def _root(squares: dict[str, float]) -> dict[str, float]:
    """Return the root of a mean square and of its interval; the root preserves percentiles."""
    return {name: float(np.sqrt(value)) for name, value in squares.items()}
