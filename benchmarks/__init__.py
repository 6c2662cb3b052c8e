"""Speed and memory, measured as ratios within one process."""

import os

# As train_lm.py runs, and as CPU times must be read: a thread that spins while it waits counts as busy. Read once, when torch
# is imported, which the modules of this package do.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
