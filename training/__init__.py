"""A run, built at its start or at a checkpoint, and the parts of a step: what train_lm.py loops over."""
