"""Synonym tolerance over training."""
