import pytest

from training.settings import parse_arguments

REQUIRED = ["--data", "data", "--weights", "weights", "--output", "output"]


@pytest.mark.parametrize(
    ("flag", "values"),
    [
        ("--learning-rate", ["1e-9", "5e-4", "100"]),
        ("--weight-decay", ["0", "0.3", "5"]),
        ("--dropout", ["0", "0.7", "0.999"]),
        ("--validation-fraction", ["0.001", "0.5", "0.999"]),
        ("--snapshot-seconds", ["0", "0.5", "3600"]),
    ],
)
def test_a_number_in_the_range_of_its_flag_is_taken(flag: str, values: list[str]) -> None:
    name = flag.removeprefix("--").replace("-", "_")
    for value in values:
        assert getattr(parse_arguments([*REQUIRED, f"{flag}={value}"]), name) == float(value)


@pytest.mark.parametrize(
    ("flag", "allowed", "values"),
    [
        ("--learning-rate", "above 0 and finite", ["0", "-1e-3", "inf", "nan"]),
        ("--weight-decay", "0 or more and finite", ["-0.1", "inf", "nan"]),
        ("--dropout", "0 or more and below 1", ["-0.1", "1", "inf", "nan"]),
        ("--validation-fraction", "above 0 and below 1", ["0", "-0.1", "1", "nan"]),
        ("--snapshot-seconds", "0 or more and finite", ["-1", "inf", "nan"]),
    ],
)
def test_a_number_outside_the_range_of_its_flag_is_refused(
    flag: str, allowed: str, values: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for value in values:
        with pytest.raises(SystemExit) as end:
            parse_arguments([*REQUIRED, f"{flag}={value}"])
        assert end.value.code == 2
        assert f"argument {flag}: must be {allowed}, not {value}\n" in capsys.readouterr().err


def test_what_is_no_number_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_arguments([*REQUIRED, "--dropout", "much"])
    assert "argument --dropout: invalid number value: 'much'" in capsys.readouterr().err
