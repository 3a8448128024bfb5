"""Settings of glibc's malloc: keep freed memory during training, and return it afterwards."""

import ctypes

from serving.container.memory import mallopt

# Parameters of mallopt, from malloc.h of glibc.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
MAX_BYTES = 2**31 - 1  # the largest value that mallopt accepts
DEFAULT_PAD, DEFAULT_MAPS = 2**17, 2**16  # from mallopt(3)


def keep_freed_memory() -> None:
    """Let this process reuse freed memory instead of returning it to the kernel at once.

    By default, glibc returns each large block when it is freed. Each training step on a CPU would
    then get its feature maps from the kernel again, zeroed page by page, which takes a third of
    the time. Does nothing without glibc.
    """
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, MAX_BYTES)
    mallopt(M_TOP_PAD, 2**28)


def release_freed_memory() -> None:
    """Return the kept memory to the kernel and restore the defaults of glibc."""
    mallopt(M_MMAP_MAX, DEFAULT_MAPS)
    mallopt(M_TRIM_THRESHOLD, DEFAULT_PAD)
    mallopt(M_TOP_PAD, DEFAULT_PAD)
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
