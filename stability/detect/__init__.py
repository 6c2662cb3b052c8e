"""Detectors of spikes, stalls, saturation and non-finite values in a run's rows."""
