"""Hashes that depend on their input alone: equal in every process and on every machine."""

import hashlib


def stable_hash(text: str) -> int:
    """A 64-bit number that depends on the text alone (Python's `hash` changes with every process)."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
