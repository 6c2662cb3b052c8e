"""The typed configuration of a run, and the recipes that use it."""
