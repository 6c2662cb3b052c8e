"""Text to tokens to batches: corpora provide documents, the store keeps their tokens, batches read them."""
