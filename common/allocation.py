"""How this process's C library gives memory back."""

import ctypes
import os
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGEST = (1 << 30, 1 << 25)
"""Bytes up to which a block is kept: the first that is accepted. glibc before 2.35 takes no more than 32 MiB."""
_VARIABLES = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_TOP_PAD_"}


def keep_freed_memory() -> bool:
    """Let the process keep memory that it frees, for its next tensors; returns whether the C library does so.

    Every training step frees and allocates the same tensors. By default glibc returns the large ones to the system, which has
    to clear each page again when it is next touched: some 2% of a small model's step on CPU. Nothing changes for another C
    library, and if the user has set glibc's own variables.
    """
    if platform.libc_ver()[0] != "glibc" or _chosen_by_user():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_TRIM_THRESHOLD, -1)) and any(mallopt(_MMAP_THRESHOLD, size) for size in _LARGEST)


def _chosen_by_user() -> bool:
    return "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") or not _VARIABLES.isdisjoint(os.environ)
