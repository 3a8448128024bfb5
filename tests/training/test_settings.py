import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from benchmarks.accuracy.__main__ import CHOSEN, TRIES
from common.files import ROOT
from training.settings import RECIPES, SWITCHES, Settings, parse_arguments

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


@pytest.mark.parametrize("mode", RECIPES)
def test_what_is_not_given_comes_from_the_recipe_of_the_mode(mode: str) -> None:
    args = parse_arguments([*REQUIRED, "--mode", mode])
    assert {name: getattr(args, name) for name in RECIPES[mode]} == RECIPES[mode]
    given = parse_arguments([*REQUIRED, "--mode", mode, "--epochs", "3", "--dropout", "0.5"])
    assert (given.epochs, given.dropout) == (3, 0.5)
    assert given.batch_size == RECIPES[mode]["batch_size"]


def test_every_setting_is_a_flag() -> None:
    args = parse_arguments([*REQUIRED, "--size", "224"])
    assert Settings(**{field.name: getattr(args, field.name) for field in fields(Settings)})


def write_settings(file: Path, content: Any) -> list[str]:
    file.write_text(json.dumps(content))
    return [*REQUIRED, "--settings", str(file)]


def test_a_settings_file_stands_for_flags_that_are_not_given(tmp_path: Path) -> None:
    arguments = write_settings(
        tmp_path / "best.json", {"mode": "finetune", "learning_rate": 0.002, "batch_size": 48}
    )
    args = parse_arguments(arguments)
    assert (args.mode, args.learning_rate, args.batch_size) == ("finetune", 0.002, 48)
    assert args.epochs == RECIPES["finetune"]["epochs"]
    assert parse_arguments([*arguments, "--batch-size", "16"]).batch_size == 16


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"learning_rte": 1}, "unrecognized arguments: --learning-rte=1"),
        ({"dropout": 1.5}, "argument --dropout: must be 0 or more and below 1, not 1.5"),
        ({"mode": "half"}, "argument --mode: invalid choice: 'half'"),
        ({"epochs": "many"}, "argument --epochs: invalid whole_number value: 'many'"),
        ([1, 2], "holds no JSON object"),
    ],
)
def test_a_wrong_settings_file_is_one_line(
    tmp_path: Path, content: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        parse_arguments(write_settings(tmp_path / "best.json", content))
    assert end.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_settings_file_that_is_missing_or_damaged_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "best.json"
    for content, message in ((None, f"no file {file}"), ("{", "is not readable as JSON")):
        if content:
            file.write_text(content)
        with pytest.raises(SystemExit):
            parse_arguments([*REQUIRED, "--settings", str(file)])
        assert message in capsys.readouterr().err


def test_every_switch_is_known_as_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(["--help"])
    usage = capsys.readouterr().out.partition("places:")[0]
    switches = set(re.findall(r"\[--([a-z-]+)\]", usage))
    assert switches == {name.replace("_", "-") for name in SWITCHES}


def test_the_best_recipe_is_the_one_that_was_measured() -> None:
    recipe = ROOT / "training" / "recipes" / "best.json"
    settings = vars(parse_arguments([*REQUIRED, "--settings", str(recipe)]))
    measured = vars(parse_arguments([*REQUIRED, *TRIES[CHOSEN]]))
    assert settings | {"precision": measured["precision"]} == measured  # any machine's own
