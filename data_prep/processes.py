"""Work on every core."""

import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager


@contextmanager
def process_pool(workers: int | None) -> Iterator[ProcessPoolExecutor]:
    """Processes (None: one a core) that end with this one; what still waits is dropped then."""
    pool = ProcessPoolExecutor(workers, initializer=_leave_signals_to_parent)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _leave_signals_to_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of a terminal
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
