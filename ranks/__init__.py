"""The processes of a launch: how they start, talk, notice that one is gone, and stop."""
