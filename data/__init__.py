"""Text to tokens to batches: corpora say where text comes from, the store keeps its tokens, batches read them."""
