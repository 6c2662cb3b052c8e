"""Probes of checkpoints."""
