"""Spike detectors on loss curves of other people's runs, labelled by eye."""
