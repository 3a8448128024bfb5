"""Tables of text."""

from hypothesis import given
from hypothesis import strategies as st

from common.table import is_numeric, table


def test_numbers_are_set_to_the_right_and_words_to_the_left() -> None:
    text = table(["what", "$", "error"], [["a", "1,000.5", "+12 %"], ["bcdefg", "2", ""]])
    assert text.splitlines() == [
        "what          $  error",
        "a       1,000.5  +12 %",
        "bcdefg        2",
    ]


def test_dollars_are_numbers_but_a_price_that_is_unknown_is_not() -> None:
    assert is_numeric(["$0.0079", "$12.5000", ""])
    assert not is_numeric(["$0.0079", "price unknown"])


cells = st.text(st.characters(categories=["L", "N", "P"]), max_size=9)


@given(st.lists(st.tuples(cells, cells), min_size=1))
def test_every_column_begins_in_one_place(rows: list[tuple[str, str]]) -> None:
    header, *lines = table(["first", "second"], rows).split("\n")
    width = max(len(first) for first, _ in [("first", ""), *rows])
    assert header[: width + 2].strip() == "first"
    assert all(
        line[: width + 2].strip() == first and line[width + 2 :].strip() == second
        for line, (first, second) in zip(lines, rows, strict=True)
    )
