"""Shared helpers: errors and exit statuses, files, seeds, imports, child processes."""
