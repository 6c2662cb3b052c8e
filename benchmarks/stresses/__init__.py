"""What each stress does to a small run, and what each remedy makes of it."""
