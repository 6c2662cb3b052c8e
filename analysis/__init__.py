"""Reads run directories and checkpoints: tables, figures, measurements. Each script is ``python -m analysis.NAME``."""
