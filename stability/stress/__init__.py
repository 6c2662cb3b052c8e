"""Stresses: deliberate faults."""
