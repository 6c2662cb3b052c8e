"""Taking a step of a run again, and saying what happened there."""
