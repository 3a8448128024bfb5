"""Which signals a process was sent."""

import signal
import sys
from types import FrameType
from typing import NoReturn


class Signals:
    """Notes the signals `numbers` as they come, instead of what they would do.

    Without a lock, unlike threading.Event: a second signal during the handling of the first,
    which a machine's shutdown sends, would wait for it for ever.
    """

    def __init__(self, *numbers: signal.Signals) -> None:
        self._seen: set[int] = set()
        for number in numbers:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._seen.add(number)

    def seen(self, number: signal.Signals) -> bool:
        return number in self._seen

    def forget(self, number: signal.Signals) -> None:
        self._seen.discard(number)

    def exit_at_once(self, number: signal.Signals, *, code: int, message: str) -> None:
        """From now on, end the program when `number` comes, or came before.

        By SystemExit, which passes the libraries that catch every Exception.
        """

        def leave(*_: object) -> NoReturn:
            signal.signal(number, signal.SIG_IGN)
            print(message, file=sys.stderr)
            sys.exit(code)

        signal.signal(number, leave)
        if self.seen(number):
            leave()


class StoppedError(Exception):
    """Asked to stop; everything finished so far is on disk."""
