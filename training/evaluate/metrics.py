"""How well the counts are right, with intervals: what metrics.json holds."""

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
    """Metrics of `probabilities` [photos, classes] against the true counts `truth` [photos].

    Class k stands for `counts[k]`. `majority` is the commonest count of the training side: the
    answer that needs no model. Intervals are percentile bootstraps over photos (Efron 1979), 95 %;
    the difference is paired, both answers judged on the same photos. `recall` has no entry for a
    count without photos, `decisions` has what each way to decide would give. Calibration is of
    the most probable count, whatever the decision.
    """
    predicted = decide(probabilities, counts, decision)
    error = (predicted - truth).astype(float)
    right = (error == 0).astype(float)
    of_truth = probabilities[np.arange(len(truth)), np.searchsorted(np.array(counts), truth)]
    surprise = -np.log(np.maximum(of_truth, np.finfo(np.float32).tiny, dtype=np.float64))
    majority_right = (truth == majority).astype(float)
    intervals = {
        "within_one": with_interval((abs(error) <= 1).astype(float)),
        "mae": with_interval(abs(error)),
        "rmse": _root(with_interval(error**2)),
        "cross_entropy": with_interval(surprise),
        "rmse_of_expected": _root(with_interval((_expected(probabilities, counts) - truth) ** 2)),
    }
    confusion = [[int(((truth == t) & (predicted == p)).sum()) for p in counts] for t in counts]
    return {
        "photos": len(truth),
        "decision": decision,
        "decisions": {
            name: _errors(decide(probabilities, counts, name) - truth) for name in DECISIONS
        },
        "accuracy": with_interval(right),
        "majority": {"count": majority, **with_interval(majority_right)},
        "accuracy_minus_majority": with_interval(right - majority_right),
        **{name: interval["value"] for name, interval in intervals.items()},
        "intervals": intervals,
        "recall": {
            str(count): {"photos": int((truth == count).sum()), **with_interval(right[of_count])}
            for count in counts
            if (of_count := truth == count).any()
        },
        "confusion": {"counts": counts, "rows_true_columns_predicted": confusion},
        "calibration": reliability(probabilities, np.searchsorted(np.array(counts), truth)),
    }


def _errors(error: NDArray[np.int64]) -> dict[str, float]:
    return {
        "accuracy": float((error == 0).mean()),
        "within_one": float((abs(error) <= 1).mean()),
        "mae": float(abs(error).mean()),
        "rmse": float((error.astype(float) ** 2).mean() ** 0.5),
    }


def worst_mistakes(
    probabilities: NDArray[np.float32],
    truth: NDArray[np.int64],
    counts: list[int],
    decision: Decision,
    number: int,
) -> NDArray[np.int64]:
    """Rows of at most `number` wrong answers, the surest first."""
    predicted = decide(probabilities, counts, decision)
    wrong = np.flatnonzero(predicted != truth)
    sureness = probabilities[wrong, np.searchsorted(np.array(counts), predicted[wrong])]
    return wrong[np.argsort(-sureness, kind="stable")[:number]]


def interval_of(value: float, draws: Sequence[float]) -> dict[str, float]:
    """A figure and its 95 % percentile interval, from the same figure of bootstrap samples."""
    low, high = np.percentile(draws, [2.5, 97.5])
    return {"value": float(value), "low": float(low), "high": float(high)}


def _expected(probabilities: NDArray[np.float32], counts: Sequence[int]) -> NDArray[np.float64]:
    return probabilities.astype(np.float64) @ np.array(counts, np.float64)


def with_interval(values: NDArray[np.float64]) -> dict[str, float]:
    """Mean of `values` and its 95 % bootstrap interval."""
    # How often each level is drawn says all; one draw at a time, as errors of expected counts
    # have as many levels as there are photos.
    levels, photos = np.unique(values, return_counts=True)
    shares = photos / len(values)
    generator = np.random.default_rng(0)
    means = [
        float(generator.multinomial(len(values), shares) @ levels) / len(values)
        for _ in range(BOOTSTRAP_SAMPLES)
    ]
    return interval_of(values.mean(), means)


def _root(squares: dict[str, float]) -> dict[str, float]:
    """A mean square and its interval → those of its root, which keeps the order of samples."""
    return {name: float(np.sqrt(value)) for name, value in squares.items()}
