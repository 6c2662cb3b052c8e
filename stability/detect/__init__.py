"""Detectors of spikes, stalls and non-finite values in a run's rows."""
