"""Importing large libraries in less time."""

import contextlib
import gc
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Hold the garbage collector off while the block imports modules, and exempt what it imported from collection.

    torch and transformers create 600,000 objects that live as long as the process. Scanning them for garbage took a quarter
    of the import time, and over a second when the process ended. If the block imports nothing new, nothing changes.
    """
    modules, enabled = len(sys.modules), gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > modules:
            gc.freeze()
        if enabled:
            gc.enable()
