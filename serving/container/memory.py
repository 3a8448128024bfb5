"""Memory allocation of the C library on Linux."""

import ctypes
import sys

M_MMAP_THRESHOLD = -3  # malloc.h of glibc
LARGE = 1 << 19  # bytes: request bodies and photos while decoded, but nothing that lives long


def mallopt(option: int, value: int) -> None:
    """Set one of malloc's options; without glibc, nothing happens."""
    if not sys.platform.startswith("linux"):
        return
    found = getattr(ctypes.CDLL(None), "mallopt", None)
    if found:
        found(option, value)


def give_back_large_blocks() -> None:
    """Return each large block to the kernel when it is freed.

    By default, glibc raises the threshold for that to the size of each block freed, up to 32 MB.
    Blocks below it fragment the heap, and the process grows for thousands of requests.
    """
    mallopt(M_MMAP_THRESHOLD, LARGE)
