"""Importing large libraries in less time."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Hold the garbage collector back while the block imports modules, and keep it off them ever after.

    torch and transformers make 600,000 objects, and they stay. Looking for garbage among them took a quarter of the time to
    import them, and a second and more again when the process ended. Where the block imports nothing new, nothing changes.
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
