"""Everything that is worth measuring the first time this project meets a GPU, in a few minutes."""

import time

STARTED = time.monotonic()
"""When this process began, before torch was imported: deadlines count from here."""
