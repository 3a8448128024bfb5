import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.metrics import evaluate

COUNTS = [1, 2, 4]


def certain(predicted: list[int]) -> np.ndarray:
    """Probabilities, [photos, classes], of someone who is sure."""
    return np.array([[float(count == one) for count in COUNTS] for one in predicted], np.float32)


def test_a_small_case_worked_out_by_hand() -> None:
    truth = np.array([1, 1, 2, 4])
    probabilities = np.array(
        [[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.5, 0.3], [0.6, 0.2, 0.2]], np.float32
    )  # says 1, 2, 2, 1; expects 1.5, 2.1, 2.4, 1.8
    metrics = evaluate(probabilities, truth, COUNTS, majority=1)
    assert metrics["photos"] == 4
    assert metrics["accuracy"]["value"] == 0.5
    assert metrics["majority"]["count"] == 1
    assert metrics["majority"]["value"] == 0.5
    assert metrics["accuracy_minus_majority"]["value"] == 0
    assert metrics["within_one"] == 0.75
    assert metrics["mae"] == (0 + 1 + 0 + 3) / 4
    squares = 0.5**2 + 1.1**2 + 0.4**2 + 2.2**2
    assert metrics["rmse_of_expected"] == pytest.approx((squares / 4) ** 0.5, abs=1e-6)
    assert metrics["confusion"] == {
        "counts": COUNTS,
        "rows_true_columns_predicted": [[1, 1, 0], [0, 1, 0], [1, 0, 0]],
    }


def test_perfect_answers() -> None:
    truth = [1, 2, 4, 4, 2]
    metrics = evaluate(certain(truth), np.array(truth), COUNTS, majority=2)
    assert metrics["accuracy"] == {"value": 1, "low": 1, "high": 1}
    assert metrics["within_one"] == 1
    assert metrics["mae"] == metrics["rmse_of_expected"] == 0
    assert metrics["confusion"]["rows_true_columns_predicted"] == [[1, 0, 0], [0, 2, 0], [0, 0, 2]]
    assert metrics["majority"]["value"] == 0.4
    assert metrics["accuracy_minus_majority"]["value"] == pytest.approx(0.6)


def test_answers_that_are_always_wrong() -> None:
    metrics = evaluate(certain([4, 4, 2, 1]), np.array([1, 2, 4, 4]), COUNTS, majority=4)
    assert metrics["accuracy"] == {"value": 0, "low": 0, "high": 0}
    assert metrics["accuracy_minus_majority"]["value"] == -0.5
    assert metrics["within_one"] == 0
    assert metrics["mae"] == (3 + 2 + 2 + 3) / 4
    assert np.trace(metrics["confusion"]["rows_true_columns_predicted"]) == 0


def test_the_interval_is_that_of_a_proportion() -> None:
    """The normal approximation, ±1.96 √(p (1 − p) / n), holds at 400 photos."""
    truth = np.full(400, 1)
    predicted = [1] * 120 + [2] * 280
    accuracy = evaluate(certain(predicted), truth, COUNTS, majority=2)["accuracy"]
    spread = 1.96 * (0.3 * 0.7 / 400) ** 0.5
    assert accuracy["value"] == pytest.approx(0.3)
    assert accuracy["low"] == pytest.approx(0.3 - spread, abs=0.006)
    assert accuracy["high"] == pytest.approx(0.3 + spread, abs=0.006)


def test_the_difference_is_judged_photo_by_photo() -> None:
    """A model that answers as the majority does is no better and no worse, for certain."""
    truth = np.array([1, 2] * 50)
    metrics = evaluate(certain([1] * 100), truth, COUNTS, majority=1)
    assert metrics["accuracy"]["low"] < 0.5 < metrics["accuracy"]["high"]
    assert metrics["accuracy_minus_majority"] == {"value": 0, "low": 0, "high": 0}


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(COUNTS), st.sampled_from(COUNTS)), min_size=1, max_size=60),
    st.sampled_from(COUNTS),
)
def test_intervals_hold_their_value_and_the_confusion_every_photo(
    photos: list[tuple[int, int]], majority: int
) -> None:
    truth, predicted = map(list, zip(*photos, strict=True))
    metrics = evaluate(certain(predicted), np.array(truth), COUNTS, majority)
    confusion = np.array(metrics["confusion"]["rows_true_columns_predicted"])
    assert confusion.sum() == metrics["photos"] == len(photos)
    assert confusion.sum(axis=1).tolist() == [truth.count(count) for count in COUNTS]
    assert confusion.sum(axis=0).tolist() == [predicted.count(count) for count in COUNTS]
    assert np.trace(confusion) / len(photos) == pytest.approx(metrics["accuracy"]["value"])
    for name in ("accuracy", "majority", "accuracy_minus_majority"):
        interval = metrics[name]
        assert interval["low"] - 1e-9 <= interval["value"] <= interval["high"] + 1e-9
    assert metrics["accuracy_minus_majority"]["value"] == pytest.approx(
        metrics["accuracy"]["value"] - metrics["majority"]["value"]
    )


def test_the_same_answers_give_the_same_intervals() -> None:
    truth, answers = np.array([1, 2, 4] * 100), certain([1, 2, 2, 1, 1, 4] * 50)
    assert evaluate(answers, truth, COUNTS, 1) == evaluate(answers, truth, COUNTS, 1)
