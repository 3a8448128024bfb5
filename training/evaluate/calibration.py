"""Calibration of probabilities: temperature scaling and reliability."""

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Float = TypeVar("Float", np.float32, np.float64)

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0  # beyond them, a network is of no use
BINS = 15  # of equal width, as in Guo et al. 2017


def softmax(logits: NDArray[Float], temperature: float = 1.0) -> NDArray[Float]:
    """Return the probabilities [N, K] of `logits` [N, K], which are divided by `temperature`."""
    powers: NDArray[Float] = np.exp((logits - logits.max(axis=1, keepdims=True)) / temperature)
    powers /= powers.sum(axis=1, keepdims=True)
    return powers


def fit_temperature(logits: NDArray[np.float32], classes: NDArray[np.int64]) -> float:
    """Fit the temperature that minimises the cross-entropy of `logits` [N, K] on `classes` [N].

    Guo et al. 2017, "On Calibration of Modern Neural Networks", section 4.2. Fit it on validation
    photos; it does not change which count is most probable. The result lies between
    MIN_TEMPERATURE and MAX_TEMPERATURE. Raises ValueError if there are no photos or if a logit is
    not finite.
    """
    if not len(logits) or not np.isfinite(logits).all():
        raise ValueError("cannot fit a temperature: there are no photos, or logits are not finite")
    exact = logits.astype(np.float64)
    of_truth = exact[np.arange(len(classes)), classes].mean()

    def slope(inverse: float) -> float:
        """Return the derivative of the cross-entropy by 1 / temperature."""
        return float((softmax(exact, 1 / inverse) * exact).sum(axis=1).mean() - of_truth)

    # The cross-entropy is convex in 1 / temperature, so bisect for the root of its derivative.
    low, high = 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 2 / (low + high)


def reliability(probabilities: NDArray[np.float32], classes: NDArray[np.int64]) -> dict[str, Any]:
    """Compare accuracy with confidence, the probability of the most probable class.

    Takes `probabilities` [N, K] and `classes` [N]. Each of `bins` has its mean `confidence`, its
    `accuracy` and the number of `photos`; empty bins are left out. The expected calibration error
    is the mean difference of the two, weighted by photos (Guo et al. 2017).
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    correct = probabilities.argmax(axis=1) == classes
    bin_of = np.minimum((confidence * BINS).astype(int), BINS - 1)
    bins = [
        {
            "confidence": float(confidence[bin_of == number].mean()),
            "accuracy": float(correct[bin_of == number].mean()),
            "photos": int((bin_of == number).sum()),
        }
        for number in np.unique(bin_of)
    ]
    error = sum(each["photos"] * abs(each["confidence"] - each["accuracy"]) for each in bins)
    return {"expected_calibration_error": error / len(classes), "bins": bins}
