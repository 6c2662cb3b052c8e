"""How this process's C library gives memory back."""

import ctypes
import os
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGEST = 1 << 30


def keep_freed_memory() -> bool:
    """Let the process keep memory that it frees, for its next tensors; returns whether the C library does so.

    Every training step frees and allocates the same tensors. By default glibc returns the large ones to the system, which has
    to clear each page again when it is next touched: some 2% of a small model's step on CPU. Nothing changes for another C
    library, and if the user has set glibc's own variables.
    """
    if platform.libc_ver()[0] != "glibc" or _chosen_by_user():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST)) and bool(mallopt(_TRIM_THRESHOLD, -1))


def _chosen_by_user() -> bool:
    return "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") or any(
        name.startswith("MALLOC_") for name in os.environ
    )
