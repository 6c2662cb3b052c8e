"""What every room uses: errors and exit statuses, files, seeds, imports, other processes."""
