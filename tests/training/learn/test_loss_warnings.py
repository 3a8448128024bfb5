import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.learn.loss_warnings import loss_warnings


def lines(train: list[float], validation: list[float]) -> list[dict[str, Any]]:
    return [
        {"step": 100 * epoch, "train_loss": one, "validation_loss": other}
        for epoch, (one, other) in enumerate(zip(train, validation, strict=True), start=1)
    ]


def falling(length: int, by: float = 0.02, start: float = 1.6) -> list[float]:
    return [start * (1 - by) ** step for step in range(length)]


def test_a_run_in_which_both_losses_fall_gives_no_warning() -> None:
    assert loss_warnings([]) == []
    assert loss_warnings(lines(falling(30), falling(30, by=0.01))) == []


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
@pytest.mark.parametrize("side", ["train", "validation"])
def test_a_loss_that_is_no_number(side: str, wrong: float) -> None:
    losses = {"train": falling(6), "validation": falling(6)}
    losses[side][2:] = [wrong] * 4
    (warning,) = loss_warnings(lines(**losses))
    assert side in warning
    assert "after step 300:" in warning
    assert str(wrong) in warning


def test_overfitting() -> None:
    validation = [1.6, 1.5, 1.4, 1.43, 1.45, 1.5]
    (warning,) = loss_warnings(lines(falling(6), validation))
    assert warning.startswith("overfitting since step 300:")
    assert loss_warnings(lines(falling(5), validation[:5])) == []  # two evaluations say little


def test_a_single_bad_evaluation_is_no_overfitting() -> None:
    assert loss_warnings(lines(falling(5), [1.6, 1.5, 1.4, 1.7, 1.39])) == []
    assert loss_warnings(lines(falling(6), [1.6, 1.5, 1.4, 1.7, 1.402, 1.7])) == []


def test_when_the_training_loss_rises_too_it_is_no_overfitting() -> None:
    losses = [1.6, 1.5, 1.4, 1.43, 1.45, 1.5]
    assert loss_warnings(lines(losses, losses)) == []


def test_a_plateau() -> None:
    validation = [1.6, 1.5, 1.4, 1.399, 1.401, 1.398, 1.4, 1.397]
    (warning,) = loss_warnings(lines(falling(8), validation))
    assert warning.startswith("plateau since step 300:")
    assert loss_warnings(lines(falling(7), validation[:7])) == []


def test_a_slow_fall_adds_up() -> None:
    assert loss_warnings(lines(falling(40, by=0.002), falling(40, by=0.002))) == []


def test_the_text_stays_while_the_state_lasts() -> None:
    validation = [1.6, 1.5, 1.4, *(1.43 + 0.01 * step for step in range(10))]
    histories = [lines(falling(n), validation[:n]) for n in range(6, 14)]
    assert len({tuple(loss_warnings(history)) for history in histories}) == 1


losses = st.floats(0.01, 10)
histories = st.lists(st.tuples(losses, losses), max_size=30).map(
    lambda pairs: lines([one for one, _ in pairs], [other for _, other in pairs])
)


@given(histories)
def test_a_warning_is_one_line_and_one_at_a_time(history: list[dict[str, Any]]) -> None:
    found = loss_warnings(history)
    assert len(found) <= 1
    assert all(text and "\n" not in text for text in found)


@given(histories, st.sampled_from([0.125, 8]))  # powers of two: no rounding
def test_the_scale_of_the_losses_does_not_matter(
    history: list[dict[str, Any]], factor: float
) -> None:
    scaled = [
        {
            **line,
            "train_loss": line["train_loss"] * factor,
            "validation_loss": line["validation_loss"] * factor,
        }
        for line in history
    ]
    assert loss_warnings(scaled) == loss_warnings(history)


@given(histories, st.floats(0.02, 0.5))
def test_a_clear_fall_at_the_end_ends_every_warning(
    history: list[dict[str, Any]], by: float
) -> None:
    least = min((line["validation_loss"] for line in history), default=1.0)
    last = {"step": 9900, "train_loss": 1.0, "validation_loss": least * (1 - by)}
    assert loss_warnings([*history, last]) == []


@given(histories, st.integers(0, 29), st.sampled_from(["train_loss", "validation_loss"]))
def test_what_is_no_number_is_always_said(
    history: list[dict[str, Any]], place: int, name: str
) -> None:
    if history:
        history[place % len(history)][name] = math.nan
        (warning,) = loss_warnings(history)
        assert "nan" in warning
