"""A run, built at its start or from a checkpoint, and the parts of a step."""
