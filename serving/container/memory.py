"""How the C library hands out memory on Linux."""

import ctypes
import sys

M_MMAP_THRESHOLD = -3  # malloc.h of glibc
LARGE = 1 << 19  # bytes: a body or a photo as it is decoded, and nothing that is there for long


def mallopt(option: int, value: int) -> None:
    """Set one of malloc's options; elsewhere than on glibc nothing happens."""
    if not sys.platform.startswith("linux"):
        return
    found = getattr(ctypes.CDLL(None), "mallopt", None)
    if found:
        found(option, value)


def give_back_large_blocks() -> None:
    """Let this process give each large block back to the kernel when it is freed.

    By default glibc stops doing so with blocks as large as any that was freed before, up to
    32 MB: they then leave holes between small ones, and the process grows for thousands of
    requests.
    """
    mallopt(M_MMAP_THRESHOLD, LARGE)
