"""What all commands share in how they read their flags."""

import pytest
from cyclopts import App

from common.flags import (
    Fraction,
    FractionOrZero,
    NonNegative,
    NonNegativeInt,
    Positive,
    PositiveInt,
    command_line,
    run,
)


def command(kind: object) -> App:
    app = command_line("test")

    def show(*, number: kind = 1, other: str = "") -> object:  # type: ignore[valid-type]
        return number

    app.default(show)
    return app


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (PositiveInt, "7", 7),
        (NonNegativeInt, "0", 0),
        (Positive, "1e-9", 1e-9),
        (NonNegative, "0", 0),
        (FractionOrZero, "0", 0),
        (Fraction, "0.999", 0.999),
    ],
)
def test_a_number_in_the_range_of_its_flag_is_accepted(
    kind: object, text: str, value: float
) -> None:
    assert command(kind)(["--number", text]) == value


@pytest.mark.parametrize(
    ("kind", "texts"),
    [
        (PositiveInt, ["0", "-1", "1.5", "1e3", "0x10", "1_000", "", "٣", "nan", "many"]),
        (NonNegativeInt, ["-1", "0.5"]),
        (Positive, ["0", "-1", "inf", "nan"]),
        (NonNegative, ["-0.1", "inf", "nan"]),
        (FractionOrZero, ["-0.1", "1", "nan"]),
        (Fraction, ["0", "1", "nan"]),
    ],
)
def test_a_number_outside_the_range_of_its_flag_is_one_line(
    kind: object, texts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for text in texts:
        with pytest.raises(SystemExit) as end:
            command(kind)([f"--number={text}"])
        assert end.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        assert "--number" in line


def test_the_last_of_a_repeated_flag_counts() -> None:
    assert command(PositiveInt)(["--number", "5", "--number", "7"]) == 7


def test_a_long_error_stays_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command(PositiveInt)([f"--{'long-' * 60}"])
    assert capsys.readouterr().err.count("\n") == 1


def test_without_a_command_the_help_is_shown_and_the_exit_code_is_not_0(
    capsys: pytest.CaptureFixture[str],
) -> None:
    app = command_line("test")
    app.command(lambda: None, name="begin")
    with pytest.raises(SystemExit) as end:
        run(app, [])
    assert end.value.code == 2
    assert "begin" in capsys.readouterr().out
