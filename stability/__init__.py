"""What is watched in a run, and what is done about it."""
