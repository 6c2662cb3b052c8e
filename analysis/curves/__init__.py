"""Curves of runs side by side."""
