"""Everything that only a GPU can show, in one command of nine minutes: correctness, speed and memory."""

import time

STARTED = time.monotonic()
"""When this process began, before torch was imported: deadlines count from here."""
