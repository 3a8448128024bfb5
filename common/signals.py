"""Signal handling."""

import signal
import sys
from types import FrameType
from typing import NoReturn


class Signals:
    """Records the signals `numbers` as they arrive, instead of their default action.

    It has no lock, unlike threading.Event: a second signal while the first is being handled, as a
    machine's shutdown sends it, would cause a deadlock.
    """

    def __init__(self, *numbers: signal.Signals) -> None:
        self._seen: set[int] = set()
        for number in numbers:
            signal.signal(number, self._record)

    def _record(self, number: int, frame: FrameType | None) -> None:
        self._seen.add(number)

    def seen(self, number: signal.Signals) -> bool:
        return number in self._seen

    def forget(self, number: signal.Signals) -> None:
        self._seen.discard(number)

    def exit_at_once(self, number: signal.Signals, *, code: int, message: str) -> None:
        """From now on, exit when `number` arrives; exit now if it has already arrived.

        Raises SystemExit, which libraries that catch every Exception do not catch.
        """

        def leave(*_: object) -> NoReturn:
            signal.signal(number, signal.SIG_IGN)
            print(message, file=sys.stderr)
            sys.exit(code)

        signal.signal(number, leave)
        if self.seen(number):
            leave()


class StoppedError(Exception):
    """Raised after a request to stop; all work finished so far is on disk."""
