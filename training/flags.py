"""Parsing of the flags of a training run, and of its settings file."""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from cyclopts import App, CycloptsError, Token
from cyclopts.argument import ArgumentCollection

from common.flags import command_line
from training.settings import RECIPES, Choices

Chosen = TypeVar("Chosen", bound=Choices)


def parse(
    options: type[Chosen],
    arguments: list[str],
    *,
    name: str = "python -m training.train",
    description: str | None = None,
) -> Chosen:
    """Parse `arguments` into `options`; exits with a message if a flag is wrong, or after --help.

    The value of a flag that is not given comes from the file of --settings, else from the recipe of
    the mode, else from its default. `name` is the command in the help.
    """
    return parse_given(options, arguments, name=name, description=description)[0]


def parse_given(
    options: type[Chosen], arguments: list[str], *, name: str, description: str | None = None
) -> tuple[Chosen, dict[str, Any]]:
    """Parse as `parse` does; also return the values that are given as flags or in the file.

    Defaults are not among them, as they depend on the machine that trains.
    """
    given: list[str] = []

    def note_given(_: App, __: tuple[str, ...], flags: ArgumentCollection) -> None:
        given.extend(flag.name.removeprefix("--") for flag in flags if flag.tokens)

    app = command_line(name, description)
    app.default(options)
    app.config = (_fill_in_settings_file, note_given, _fill_in_recipe)
    chosen: Chosen | None = app(arguments)
    if chosen is None:  # after --help
        sys.exit(0)
    values = asdict(chosen.settings) | asdict(chosen.extras) | asdict(chosen.machine)
    names = (name.replace("-", "_") for name in given)
    return chosen, {name: values[name] for name in names if name in values}


def as_flags(values: Mapping[str, Any]) -> list[str]:
    """Turn {"batch_size": 64, "profile": True} into ["--batch-size=64", "--profile=True"]."""
    return [f"--{name.replace('_', '-')}={value}" for name, value in values.items()]


def _fill_in_settings_file(_: App, __: tuple[str, ...], flags: ArgumentCollection) -> None:
    """Fill in flags that are not given from the file of --settings."""
    tokens = flags["--settings"].tokens
    if not tokens:
        return
    file = tokens[0].value
    try:
        values = json.loads(Path(file).read_text())
    except FileNotFoundError:
        raise CycloptsError(msg=f"--settings: there is no file {file}") from None
    except (OSError, ValueError) as error:
        raise CycloptsError(msg=f"--settings: {file} is not valid JSON ({error})") from error
    if not isinstance(values, dict):
        raise CycloptsError(msg=f"--settings: {file} does not contain a JSON object")
    _fill_in(flags, values, source=file)


def _fill_in_recipe(_: App, __: tuple[str, ...], flags: ArgumentCollection) -> None:
    """Fill in flags that are not given from the recipe of the mode."""
    mode = [token.value for token in flags["--mode"].tokens]
    _fill_in(flags, RECIPES.get(mode[0] if mode else "head", {}), source="recipe")


def _fill_in(flags: ArgumentCollection, values: Mapping[str, Any], source: str) -> None:
    for name, value in values.items():
        key = f"--{name.replace('_', '-')}"
        try:
            flag = flags[key]
        except KeyError:
            raise CycloptsError(msg=f"{source}: there is no setting {name}") from None
        if not flag.tokens:
            flag.append(Token(keyword=key, value=str(value), source=source))
