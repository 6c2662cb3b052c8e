"""Runs, suites and logs as one HTML file that can be sent to somebody."""
