"""Monitoring a run for instabilities, provoking them, and intervening."""
