"""What train_lm.py's loop runs on: a run with everything in it, at its start or at a checkpoint, and its learning rate."""
