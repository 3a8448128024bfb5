"""Work on several cores."""

import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager


@contextmanager
def process_pool(workers: int | None) -> Iterator[ProcessPoolExecutor]:
    """Start `workers` processes (None: one per core), and end them on leaving the block.

    Tasks that have not started by then are dropped.
    """
    pool = ProcessPoolExecutor(workers, initializer=_leave_signals_to_parent)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _leave_signals_to_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of a terminal
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
