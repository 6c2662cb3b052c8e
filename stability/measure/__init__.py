"""What is measured at every step."""
