"""Memory that is freed is used again while a network is trained, and given back after that."""

import ctypes

from serving.container.memory import mallopt

# malloc.h of glibc
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
KEPT_BYTES = 2**31 - 1  # the largest that mallopt takes
DEFAULT_PAD, DEFAULT_MAPS = 2**17, 2**16  # mallopt(3)


def keep_freed_memory() -> None:
    """Let this process use freed memory again instead of giving it back at once.

    By default glibc gives every large block back to the kernel when it is freed, and each step
    of training on a CPU gets its feature maps from the kernel anew, zeroed page by page: a third
    of the time. Elsewhere than on glibc nothing happens.
    """
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
    mallopt(M_TOP_PAD, 2**28)


def give_freed_memory_back() -> None:
    """Give what is kept back to the kernel, and from now on each large block when it is freed."""
    mallopt(M_MMAP_MAX, DEFAULT_MAPS)
    mallopt(M_TRIM_THRESHOLD, DEFAULT_PAD)
    mallopt(M_TOP_PAD, DEFAULT_PAD)
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
