from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.container.decision import Decision, decide
from training.evaluate.metrics import evaluate, worst_mistakes

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
    nll = -(np.log(0.7) + np.log(0.1) + np.log(0.5) + np.log(0.2)) / 4
    assert metrics["cross_entropy"] == pytest.approx(nll, abs=1e-6)
    squares = 0.5**2 + 1.1**2 + 0.4**2 + 2.2**2
    assert metrics["rmse_of_mean"] == pytest.approx((squares / 4) ** 0.5, abs=1e-6)
    assert metrics["confusion"] == {
        "counts": COUNTS,
        "rows_true_columns_predicted": [[1, 1, 0], [0, 1, 0], [1, 0, 0]],
    }


def test_what_each_decision_would_give_is_there_whichever_is_taken() -> None:
    truth = np.array([1, 2, 4, 2])
    probabilities = np.array(
        [[0.6, 0.1, 0.3], [0.48, 0.1, 0.42], [0.1, 0.2, 0.7], [0.4, 0.3, 0.3]], np.float32
    )
    found = {name: evaluate(probabilities, truth, COUNTS, 1, name) for name in get_args(Decision)}
    for name, metrics in found.items():
        assert metrics["decisions"] == found["argmax"]["decisions"]
        of_this = metrics["decisions"][name]
        assert of_this["accuracy"] == metrics["accuracy"]["value"]
        assert [of_this[key] for key in ("within_one", "mae", "rmse")] == pytest.approx(
            [metrics[key] for key in ("within_one", "mae", "rmse")]
        )
    exact = {name: errors["accuracy"] for name, errors in metrics["decisions"].items()}
    assert exact == {"argmax": 0.5, "mean": 0.75, "median": 1}


def test_perfect_answers() -> None:
    truth = [1, 2, 4, 4, 2]
    metrics = evaluate(certain(truth), np.array(truth), COUNTS, majority=2)
    assert metrics["accuracy"] == {"value": 1, "low": 1, "high": 1}
    assert metrics["within_one"] == 1
    assert metrics["mae"] == metrics["rmse_of_mean"] == 0
    assert metrics["confusion"]["rows_true_columns_predicted"] == [[1, 0, 0], [0, 2, 0], [0, 0, 2]]
    assert metrics["majority"]["value"] == 0.4
    assert metrics["accuracy_minus_majority"]["value"] == pytest.approx(0.6)


def test_answers_that_are_always_wrong() -> None:
    metrics = evaluate(certain([4, 4, 2, 1]), np.array([1, 2, 4, 4]), COUNTS, majority=4)
    assert metrics["accuracy"] == {"value": 0, "low": 0, "high": 0}
    assert metrics["accuracy_minus_majority"]["value"] == -0.5
    assert metrics["within_one"] == 0
    assert metrics["mae"] == (3 + 2 + 2 + 3) / 4
    assert 80 < metrics["cross_entropy"] < 90  # the smallest of float32, not infinity
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


@settings(deadline=None, max_examples=30)
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


DECISIONS: tuple[Decision, ...] = get_args(Decision)


@pytest.mark.parametrize(
    ("probabilities", "argmax", "mean", "median"),
    [
        ([0.4, 0.3, 0.3], 1, 2, 2),  # mean 2.2
        ([0.6, 0.0, 0.4], 1, 2, 1),  # mean 2.2
        ([0.3, 0.1, 0.6], 4, 2, 4),  # mean 2.9
        ([0.5, 0.5, 0.0], 1, 1, 1),  # mean 1.5; the lower of two as good
        ([0.25, 0.25, 0.5], 4, 2, 2),
        ([0, 0, 1], 4, 4, 4),
    ],
)
def test_decisions_worked_out_by_hand(
    probabilities: list[float], argmax: int, mean: int, median: int
) -> None:
    row = np.array([probabilities], np.float32)
    chosen = {decision: decide(row, COUNTS, decision).tolist() for decision in DECISIONS}
    assert chosen == {"argmax": [argmax], "mean": [mean], "median": [median]}


weights = st.lists(st.integers(0, 20), min_size=3, max_size=3).filter(any)


@given(st.lists(weights, min_size=1, max_size=10))
def test_each_decision_has_the_least_expected_loss_of_its_kind(rows: list[list[int]]) -> None:
    probabilities = np.array(rows, np.float32) / np.sum(rows, axis=1, keepdims=True)
    probabilities = probabilities.astype(np.float32)
    distance = abs(np.array(COUNTS)[:, None] - COUNTS)
    losses = {"argmax": distance > 0, "median": distance, "mean": distance**2}
    for decision in DECISIONS:
        chosen = decide(probabilities, COUNTS, decision)
        assert chosen.dtype == np.int64
        expected_loss = probabilities.astype(float) @ losses[decision]
        got = expected_loss[np.arange(len(rows)), np.searchsorted(COUNTS, chosen)]
        np.testing.assert_allclose(got, expected_loss.min(axis=1), atol=1e-5)


def test_the_decision_decides_what_is_counted_as_right() -> None:
    truth = np.array([2, 4])
    probabilities = np.array([[0.4, 0.3, 0.3], [0.1, 0.3, 0.6]], np.float32)
    by_argmax, by_median = (
        evaluate(probabilities, truth, COUNTS, majority=1, decision=decision)
        for decision in ("argmax", "median")
    )
    assert (by_argmax["decision"], by_median["decision"]) == ("argmax", "median")
    assert (by_argmax["accuracy"]["value"], by_median["accuracy"]["value"]) == (0.5, 1)
    assert (by_argmax["mae"], by_median["mae"]) == (0.5, 0)
    assert by_median["confusion"]["rows_true_columns_predicted"] == [[0] * 3, [0, 1, 0], [0, 0, 1]]
    for same in ("rmse_of_mean", "calibration"):  # of the probabilities, not the decision
        assert by_argmax[same] == by_median[same]


def test_recall_by_count_and_errors_with_intervals() -> None:
    truth = np.array([1, 1, 1, 1, 4, 4])
    metrics = evaluate(certain([1, 1, 1, 2, 1, 4]), truth, COUNTS, majority=1)
    assert list(metrics["recall"]) == ["1", "4"]  # no photo has 2
    assert metrics["recall"]["1"]["photos"] == 4
    assert metrics["recall"]["1"]["value"] == 0.75
    assert metrics["recall"]["4"]["value"] == 0.5
    assert metrics["rmse"] == pytest.approx(((1 + 9) / 6) ** 0.5)
    for name in ("within_one", "mae", "rmse", "cross_entropy", "rmse_of_mean"):
        interval = metrics["intervals"][name]
        assert interval["value"] == metrics[name]
        assert interval["low"] < interval["value"] < interval["high"]


def test_the_interval_of_the_mean_error_is_that_of_a_mean() -> None:
    random = np.random.default_rng(0)
    truth = random.integers(1, 6, 600)
    probabilities = random.dirichlet(np.ones(5), 600).astype(np.float32)
    counts = [1, 2, 3, 4, 5]
    errors = abs(probabilities.argmax(axis=1) + 1 - truth)
    mae = evaluate(probabilities, truth, counts, majority=1)["intervals"]["mae"]
    spread = 1.96 * errors.std() / 600**0.5
    assert mae["low"] == pytest.approx(errors.mean() - spread, abs=0.02)
    assert mae["high"] == pytest.approx(errors.mean() + spread, abs=0.02)


def test_the_surest_mistakes_come_first() -> None:
    probabilities = np.array(
        [[0.9, 0.1, 0], [0.2, 0.8, 0], [0, 0.3, 0.7], [0.6, 0.2, 0.2]], np.float32
    )
    truth = np.array([1, 1, 1, 4])
    rows = worst_mistakes(probabilities, truth, COUNTS, "argmax", 2)
    assert rows.tolist() == [1, 2]
    assert worst_mistakes(probabilities, truth, COUNTS, "argmax", 9).tolist() == [1, 2, 3]
    assert not len(worst_mistakes(certain([1]), np.array([1]), COUNTS, "argmax", 9))
