"""Random streams: one per purpose, all derived from the run's seed."""

import hashlib


def stream_seed(seed: int, purpose: str, *position: int) -> int:
    """Seed of the stream for ``purpose`` (at a step and rank, say): 63 bits of a hash, so that streams do not overlap."""
    key = ":".join([str(seed), purpose, *map(str, position)])
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1
