"""Suites: arms x scenarios x rates x seeds as many runs, on this machine or on a cluster."""
