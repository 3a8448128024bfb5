"""Questions and error messages of all commands."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from botocore.exceptions import (
    CredentialRetrievalError,
    NoCredentialsError,
    NoRegionError,
    TokenRetrievalError,
)


def in_one_line(error: Exception) -> str:
    """Return an error's message in one line, with advice where AWS's libraries give none."""
    message = " ".join(str(error).split())
    if isinstance(error, NoRegionError):
        return f"{message.rstrip('.')}: run `export AWS_DEFAULT_REGION=us-east-1`, or your region"
    if isinstance(error, NoCredentialsError | CredentialRetrievalError | TokenRetrievalError):
        return f"{message.rstrip('.')}: sign in with `aws sso login` or `aws configure`"
    return message


def confirmed(question: str) -> bool:
    """Ask the user a yes-or-no question; the end of the input and Ctrl-C count as no."""
    try:
        reply = input(f"{question} [y/N] ")
    except (EOFError, KeyboardInterrupt):
        print()
        return False
    return reply.strip().lower() in {"y", "yes"}


@contextmanager
def interruptible() -> Iterator[None]:
    """Decorate a command's `main` so that it ends without a traceback when it is interrupted.

    Ctrl-C prints one line and exits with 130; a closed pipe, such as that of `head`, prints
    nothing and exits with 141. A shell reports these signals with the same codes.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:
        # Discard the rest of the output, or Python prints an error when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
