"""Arithmetic, turns, processes and tables of the measurements."""

import multiprocessing
import os
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import measure
from benchmarks.measure import (
    BenchmarkError,
    Measured,
    compare,
    describe,
    number,
    range_of,
    ratios,
    run_alone,
)


def seconds(*values: float, photos: int = 12) -> list[Measured]:
    return [Measured(photos=photos, seconds=value) for value in values]


def test_a_ratio_is_taken_within_a_round() -> None:
    # Rounds: 2, 3 and 4 times as fast; the machine was slow in the second.
    found = ratios(seconds(1, 12, 1), seconds(2, 36, 4))
    assert (found.median, found.least, found.most) == pytest.approx((3, 2, 4))


@given(st.lists(st.tuples(*[st.floats(1e-3, 1e6)] * 2), min_size=1, max_size=9), st.integers(1, 99))
def test_a_ratio_is_of_photos_per_second_whatever_the_photos(
    rounds: list[tuple[float, float]], times: int
) -> None:
    ours, theirs = (seconds(*values) for values in zip(*rounds, strict=True))
    more = seconds(*(run.seconds * times for run in ours), photos=12 * times)
    expected = [other / own for own, other in rounds]
    found = ratios(more, theirs)
    assert (found.median, found.least, found.most) == pytest.approx(
        (np.median(expected), min(expected), max(expected))
    )


def test_sides_take_turns_and_every_second_round_runs_backwards(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measure, "run_alone", lambda run: run())
    order: list[str] = []

    def run(name: str) -> Measured:
        order.append(name)
        return Measured(photos=1, seconds=len(order))

    found = compare("turns", {name: partial(run, name) for name in "abc"}, 3)
    assert "".join(order) == "abccbaabc"
    assert [measured.seconds for measured in found["a"]] == [1, 6, 7]
    out, err = capsys.readouterr()
    assert out == ""
    assert "turns, round 2 of 3: b" in err


def tell_process() -> Measured:
    print("not for the table")
    usual = multiprocessing.get_start_method() == multiprocessing.get_all_start_methods()[0]
    return Measured(photos=os.getpid(), seconds=1, facts={"starts workers as usual": usual})


def test_a_run_has_a_process_of_its_own_that_leaves_stdout_alone(
    capfd: pytest.CaptureFixture[str],
) -> None:
    found = run_alone(tell_process)
    assert found.photos != os.getpid()
    assert found.facts["starts workers as usual"]
    out, err = capfd.readouterr()
    assert out == ""
    assert "not for the table" in err


def test_a_process_that_is_killed_is_one_line() -> None:
    with pytest.raises(BenchmarkError, match="memory ran out"):
        run_alone(partial(os._exit, 9))


def test_the_table_has_ranges_and_ratios() -> None:
    runs = {"ours": seconds(10.0, 12.5, photos=100), "theirs": seconds(20.0, 50.0, photos=100)}
    assert describe(runs, "theirs") == (
        "|  | seconds | photos/s | times as fast |\n"
        "| --- | --: | --: | --: |\n"
        "| ours | 11.2 (10–12.5) | 9 (8–10) | 3 (2–4) |\n"
        "| theirs | 35 (20–50) | 3.5 (2–5) | 1 |"
    )
    assert str(range_of([3.0, 3.0])) == "3"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0123456, "0.0123"), (9.876, "9.88"), (99.96, "100"), (123.4, "123"), (12345.6, "12,346")],
)
def test_numbers_have_three_significant_digits(value: float, text: str) -> None:
    assert number(value) == text
