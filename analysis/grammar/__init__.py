"""The comparison of arms with the truth of the synonym grammar."""
