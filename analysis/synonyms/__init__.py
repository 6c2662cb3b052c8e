"""The comparison of arms on synonym pairs."""
