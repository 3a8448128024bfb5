import json
import re
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, get_args

import pytest

from benchmarks.accuracy.__main__ import CHOSEN, TRIES
from common.choices import Arch
from common.files import ROOT
from training.flags import as_flags, parse
from training.settings import ARCHITECTURES, RECIPES, Options, Settings

REQUIRED = ["--data", "data", "--weights", "weights", "--output", "output"]


def options(*flags: str) -> Options:
    return parse(Options, [*REQUIRED, *flags])


def value(name: str, *flags: str) -> Any:
    """Of a setting, or of what the machine has."""
    found = options(*flags)
    return (asdict(found.settings) | asdict(found.machine))[name]


@pytest.mark.parametrize(
    ("flag", "values"),
    [
        ("--learning-rate", ["1e-9", "5e-4", "100"]),
        ("--weight-decay", ["0", "0.3", "5"]),
        ("--dropout", ["0", "0.7", "0.999"]),
        ("--validation-fraction", ["0.001", "0.5", "0.999"]),
        ("--checkpoint-seconds", ["0", "0.5", "3600"]),
    ],
)
def test_a_number_in_the_range_of_its_flag_is_taken(flag: str, values: list[str]) -> None:
    name = flag.removeprefix("--").replace("-", "_")
    for text in values:
        assert value(name, f"{flag}={text}") == float(text)


@pytest.mark.parametrize(
    ("flag", "allowed", "values"),
    [
        ("--learning-rate", "> 0.|< inf.", ["0", "-1e-3", "inf", "nan"]),
        ("--weight-decay", ">= 0.|< inf.", ["-0.1", "inf", "nan"]),
        ("--dropout", ">= 0.|< 1.", ["-0.1", "1", "inf", "nan"]),
        ("--validation-fraction", "> 0.|< 1.", ["0", "-0.1", "1", "nan"]),
        ("--checkpoint-seconds", ">= 0.|< inf.", ["-1", "inf", "nan"]),
    ],
)
def test_a_number_outside_the_range_of_its_flag_is_refused(
    flag: str, allowed: str, values: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for text in values:
        with pytest.raises(SystemExit) as end:
            options(f"{flag}={text}")
        assert end.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert re.fullmatch(f'error: Invalid value ".+" for {flag}. Must be ({allowed})', line)


def test_what_is_no_number_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        options("--dropout", "much")
    assert 'Invalid value for --dropout: unable to convert "much"' in capsys.readouterr().err


@pytest.mark.parametrize("mode", RECIPES)
def test_what_is_not_given_comes_from_the_recipe_of_the_mode(mode: str) -> None:
    usual = options("--mode", mode).settings
    assert {name: getattr(usual, name) for name in RECIPES[mode]} == RECIPES[mode]
    given = options("--mode", mode, "--epochs", "3", "--dropout", "0.5").settings
    assert (given.epochs, given.dropout) == (3, 0.5)
    assert given.batch_size == RECIPES[mode]["batch_size"]


def test_every_setting_is_a_flag_with_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse(Options, ["--help"])
    assert end.value.code == 0
    help_text = capsys.readouterr().out
    for field in fields(Settings):
        flag = f"--{field.name.replace('_', '-')}"
        assert re.search(rf"{flag} (INT|FLOAT|CHOICE) +[a-zA-Z]\w+", help_text), flag


def test_flags_of_settings_are_those_settings() -> None:
    asked = options("--mode", "finetune", "--epochs", "3", "--mirror", "yes")
    assert options(*as_flags(asdict(asked.settings))) == asked


def test_every_architecture_can_be_chosen() -> None:
    assert set(get_args(Arch)) == set(ARCHITECTURES)


def write_settings(file: Path, content: Any) -> list[str]:
    file.write_text(json.dumps(content))
    return ["--settings", str(file)]


def test_a_settings_file_stands_for_flags_that_are_not_given(tmp_path: Path) -> None:
    arguments = write_settings(
        tmp_path / "best.json", {"mode": "finetune", "learning_rate": 0.002, "batch_size": 48}
    )
    found = options(*arguments).settings
    assert (found.mode, found.learning_rate, found.batch_size) == ("finetune", 0.002, 48)
    assert found.epochs == RECIPES["finetune"]["epochs"]
    assert options(*arguments, "--batch-size", "16").settings.batch_size == 16


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"learning_rte": 1}, "there is no setting learning_rte"),
        ({"dropout": 1.5}, 'Invalid value "1.5" for --dropout'),
        ({"mode": "half"}, 'Invalid value "half" for --mode'),
        ({"epochs": "many"}, "Invalid value for --epochs"),
        ([1, 2], "does not contain a JSON object"),
    ],
)
def test_a_wrong_settings_file_is_one_line(
    tmp_path: Path, content: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        options(*write_settings(tmp_path / "best.json", content))
    assert end.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_settings_file_that_is_missing_or_damaged_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "best.json"
    for content, message in ((None, f"no file {file}"), ("{", "is not valid JSON")):
        if content:
            file.write_text(content)
        with pytest.raises(SystemExit):
            options("--settings", str(file))
        assert message in capsys.readouterr().err


def test_the_best_recipe_is_the_one_that_was_measured() -> None:
    recipe = ROOT / "training" / "recipes" / "best.json"
    settings = options("--settings", str(recipe)).settings
    measured = options(*TRIES[CHOSEN]).settings
    assert replace(settings, precision=measured.precision) == measured  # any machine's own
