"""What our commands share: how they ask, and how they end when something is wrong, in one line.

Imports no CDK: each command uses it.

@interruptible()
def main() -> None: …
"""

import argparse
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from botocore.exceptions import (
    CredentialRetrievalError,
    NoCredentialsError,
    NoRegionError,
    TokenRetrievalError,
)


def in_one_line(error: Exception) -> str:
    """The message of an error, with what to do where AWS's libraries do not say it."""
    message = " ".join(str(error).split())
    if isinstance(error, NoRegionError):
        return f"{message.rstrip('.')}: run `export AWS_DEFAULT_REGION=us-east-1`, or where you are"
    if isinstance(error, NoCredentialsError | CredentialRetrievalError | TokenRetrievalError):
        return f"{message.rstrip('.')}: sign in with `aws sso login` or `aws configure`"
    return message


def between(low: float, high: float) -> Callable[[str], float]:
    """The type of a flag whose value is a number from `low` to `high`."""

    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"must be {low:g} to {high:g}, not {text}")
        return value

    return number


hours = between(0.1, 7 * 24)


def confirmed(question: str) -> bool:
    """Whether the user says yes; an end of the input, or Ctrl-C, is a no."""
    try:
        reply = input(f"{question} [y/N] ")
    except (EOFError, KeyboardInterrupt):
        print()
        return False
    return reply.strip().lower() in {"y", "yes"}


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C is one line and exit code 130; a reader that has left, such as `head`, is none
    and 141. Both codes are a shell's own for these signals."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:
        # What is left of the output goes nowhere, or else Python complains about it at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
