"""Command lines whose flags are the parameters of functions and the fields of dataclasses."""

import math
import re
import sys
from collections.abc import Sequence
from typing import Annotated, Any

from cyclopts import (
    App,
    CycloptsError,
    MissingArgumentError,
    Parameter,
    Token,
    UnusedCliTokensError,
)
from cyclopts.validators import Number
from rich.console import Console
from rich.text import Text


def _to_whole_number(_: object, tokens: Sequence[Token]) -> int:
    """cyclopts itself rounds: 1.5 machines would be 2."""
    if not re.fullmatch(r"-?\d+", tokens[0].value, re.ASCII):
        raise ValueError(f'"{tokens[0].value}" is not a whole number')
    return int(tokens[0].value)


PositiveInt = Annotated[
    int, Parameter(converter=_to_whole_number, n_tokens=1, validator=Number(gte=1))
]
NonNegativeInt = Annotated[
    int, Parameter(converter=_to_whole_number, n_tokens=1, validator=Number(gte=0))
]
Hours = Annotated[float, Parameter(validator=Number(gte=0.1, lte=7 * 24))]
FractionOrZero = Annotated[float, Parameter(validator=Number(gte=0, lt=1))]
Fraction = Annotated[float, Parameter(validator=Number(gt=0, lt=1))]
Positive = Annotated[float, Parameter(validator=Number(gt=0, lt=math.inf))]
NonNegative = Annotated[float, Parameter(validator=Number(gte=0, lt=math.inf))]
Switch = Annotated[bool, Parameter(show_default=False)]


def command_line(name: str, description: str | None = None) -> App:
    """Create a command whose flags and subcommands are functions; `description` is Markdown.

    Calling it with arguments returns what the function returns. An invalid flag prints one line
    to standard error and exits with code 2.
    """
    app = App(
        name,
        description,
        help_format="markdown",
        version_flags=(),
        default_parameter=Parameter(negative=(), allow_repeating=True),  # the last one counts
        error_console=Console(stderr=True, soft_wrap=True),
        error_formatter=_one_line,
        result_action="return_value",
        suppress_keyboard_interrupt=False,
    )
    app["--help"].show = False
    return app


def run(app: App, arguments: Sequence[str] | None = None) -> Any:
    """Run one of the commands of `app` with `arguments`, by default those of this process.

    Without any, show the help and exit with code 2.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments:
        app.help_print()
        sys.exit(2)
    return app(arguments)


def _one_line(error: CycloptsError) -> Text:
    match error:
        case UnusedCliTokensError():
            message = f"Unexpected argument: {' '.join(error.unused_tokens or ())}; see --help."
        case MissingArgumentError(keyword=None, argument=missing) if missing:
            message = f"{missing.name} is required; see --help."
        case _:
            message = f"{error}"
    return Text(f"error: {message}")
