"""What a run does about what it detects."""
