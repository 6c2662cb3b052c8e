"""Spikes in finished runs and in other logs."""
