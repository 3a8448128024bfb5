"""How a command ends that is broken off: no traceback. Imports no CDK, as it is in every command.

@interruptible()
def main() -> None: …
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager


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
