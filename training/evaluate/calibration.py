"""Whether a probability means what it says: temperature scaling and reliability."""

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Float = TypeVar("Float", np.float32, np.float64)

COLDEST, HOTTEST = 0.05, 20.0  # temperatures; a network beyond them has learnt nothing of use
BINS = 15  # of equal width, as in Guo et al.


def softmax(logits: NDArray[Float], temperature: float = 1.0) -> NDArray[Float]:
    """Probabilities [N, K] of `logits` [N, K]; above 1, `temperature` makes them less sure."""
    powers: NDArray[Float] = np.exp((logits - logits.max(axis=1, keepdims=True)) / temperature)
    powers /= powers.sum(axis=1, keepdims=True)
    return powers


def fit_temperature(logits: NDArray[np.float32], classes: NDArray[np.int64]) -> float:
    """The temperature with the lowest cross-entropy of `logits` [N, K] on `classes` [N].

    Guo et al. 2017, "On Calibration of Modern Neural Networks", section 4.2. To be fitted on
    validation photos; it changes no most probable count. Between COLDEST and HOTTEST. Raises
    ValueError when there is no photo, or a logit is NaN or infinite.
    """
    if not len(logits) or not np.isfinite(logits).all():
        raise ValueError("no temperature can be fitted: no photos, or logits that are not finite")
    exact = logits.astype(np.float64)
    of_truth = exact[np.arange(len(classes)), classes].mean()

    def slope(inverse: float) -> float:
        """Of the cross-entropy, by 1 / temperature."""
        return float((softmax(exact, 1 / inverse) * exact).sum(axis=1).mean() - of_truth)

    # The cross-entropy is convex in 1 / temperature: its minimum is where the slope changes sign.
    low, high = 1 / HOTTEST, 1 / COLDEST
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 2 / (low + high)


def reliability(probabilities: NDArray[np.float32], classes: NDArray[np.int64]) -> dict[str, Any]:
    """How often the most probable class is right, by how sure the model is of it.

    `probabilities` [N, K], `classes` [N]. Each of `bins` has the mean `confidence`, the
    `accuracy` and the number of `photos`; those without photos are left out. The expected
    calibration error is the mean distance between the two, weighted by photos (Guo et al. 2017).
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == classes
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    bins = [
        {
            "confidence": float(confidence[place == one].mean()),
            "accuracy": float(right[place == one].mean()),
            "photos": int((place == one).sum()),
        }
        for one in np.unique(place)
    ]
    error = sum(one["photos"] * abs(one["confidence"] - one["accuracy"]) for one in bins)
    return {"expected_calibration_error": error / len(classes), "bins": bins}
