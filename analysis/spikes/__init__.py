"""Spikes in finished runs and in any log."""
