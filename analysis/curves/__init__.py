"""Training curves of several runs in one figure."""
