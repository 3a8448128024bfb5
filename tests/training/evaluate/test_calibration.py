import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from training.evaluate.calibration import (
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    fit_temperature,
    reliability,
    softmax,
)


def drawn(photos: int, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Logits [photos, 5] of a model that means what it says, and classes drawn from them."""
    random = np.random.default_rng(seed)
    logits = random.normal(scale=1.5, size=(photos, 5)).astype(np.float32)
    sums = softmax(logits).cumsum(axis=1)
    return logits, (random.random((photos, 1)) > sums[:, :4]).sum(axis=1)


def cross_entropy(probabilities: NDArray[np.float32], classes: NDArray[np.int64]) -> float:
    return float(-np.log(probabilities[np.arange(len(classes)), classes]).mean())


@pytest.mark.parametrize("exaggeration", [0.3, 1, 4])
def test_the_temperature_takes_back_an_exaggeration(exaggeration: float) -> None:
    logits, classes = drawn(20_000)
    temperature = fit_temperature(logits * exaggeration, classes)
    assert temperature == pytest.approx(exaggeration, rel=0.05)


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 10_000),
    photos=st.integers(1, 60),
    exaggeration=st.sampled_from([0.1, 1, 10]),
)
def test_no_temperature_nearby_fits_better(seed: int, photos: int, exaggeration: float) -> None:
    logits, classes = drawn(photos, seed)
    logits *= np.float32(exaggeration)
    temperature = fit_temperature(logits, classes)
    assert MIN_TEMPERATURE * 0.9999 < temperature < MAX_TEMPERATURE * 1.0001
    least = cross_entropy(softmax(logits, temperature), classes)
    for factor in (0.8, 0.97, 1.03, 1.25):
        other = min(max(temperature * factor, MIN_TEMPERATURE), MAX_TEMPERATURE)
        assert least <= cross_entropy(softmax(logits, other), classes) + 1e-5


def test_the_temperature_is_bounded_when_every_answer_is_right_or_wrong() -> None:
    logits, classes = np.eye(5, dtype=np.float32), np.arange(5)
    assert fit_temperature(logits, classes) == pytest.approx(MIN_TEMPERATURE, rel=1e-6)
    assert fit_temperature(logits, (classes + 1) % 5) == pytest.approx(MAX_TEMPERATURE, rel=1e-6)


def test_a_temperature_leaves_the_most_probable_class() -> None:
    logits, _ = drawn(500)
    for temperature in (0.2, 3.0):
        answers = softmax(logits, temperature).argmax(axis=1)
        np.testing.assert_array_equal(answers, logits.argmax(axis=1))


def test_large_logits_give_probabilities() -> None:
    logits = np.array([[1000, 999, -1000], [-1000, -1001, -1000]], np.float32)
    probabilities = softmax(logits)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-6)
    assert probabilities[0, 0] == pytest.approx(1 / (1 + np.exp(-1)))


@pytest.mark.parametrize(
    "logits", [np.zeros((0, 5), np.float32), np.array([[0, np.nan]], np.float32)]
)
def test_what_cannot_be_fitted_is_said(logits: NDArray[np.float32]) -> None:
    with pytest.raises(ValueError, match="cannot fit a temperature"):
        fit_temperature(logits, np.zeros(len(logits), np.int64))


def test_reliability_worked_out_by_hand() -> None:
    probabilities = np.array([[0.9, 0.1], [0.1, 0.9], [0.6, 0.4], [0.38, 0.62]], np.float32)
    found = reliability(probabilities, np.array([0, 0, 0, 1]))
    unsure, sure = found["bins"]  # 0.6 to 0.667, and 0.867 to 0.933
    assert unsure == {"confidence": pytest.approx(0.61), "accuracy": 1, "photos": 2}
    assert sure == {"confidence": pytest.approx(0.9), "accuracy": 0.5, "photos": 2}
    assert found["expected_calibration_error"] == pytest.approx((0.39 + 0.4) / 2)


def test_who_is_sure_and_right_is_calibrated() -> None:
    found = reliability(np.eye(3, dtype=np.float32), np.arange(3))
    assert found == {
        "expected_calibration_error": 0,
        "bins": [{"confidence": 1, "accuracy": 1, "photos": 3}],
    }


def test_an_exaggeration_shows_and_its_temperature_mends_it() -> None:
    logits, classes = drawn(5000)
    logits *= 3
    temperature = fit_temperature(logits, classes)
    before, after = (
        reliability(softmax(logits, one), classes)["expected_calibration_error"]
        for one in (1.0, temperature)
    )
    assert before > 0.1
    assert after < 0.03


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10_000), photos=st.integers(1, 80))
def test_every_photo_is_in_one_bin(seed: int, photos: int) -> None:
    logits, classes = drawn(photos, seed)
    probabilities = softmax(logits)
    found = reliability(probabilities, classes)
    bins = found["bins"]
    assert sum(one["photos"] for one in bins) == photos
    right = sum(one["photos"] * one["accuracy"] for one in bins)
    assert right == pytest.approx((probabilities.argmax(axis=1) == classes).sum())
    assert [one["confidence"] for one in bins] == sorted(one["confidence"] for one in bins)
    assert 0 <= found["expected_calibration_error"] <= 1
