"""Training logs of any tool, recognised by their content: :func:`record.logs.read.read_logs`. A file a format."""
