"""Speed and memory, measured as ratios within one process."""

import os

# As for train_lm.py. CPU times would count a thread that spins while it waits. It must be set before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
