"""Which signals a process was sent."""

import signal
from types import FrameType


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


class StoppedError(Exception):
    """Asked to stop; everything finished so far is on disk."""
