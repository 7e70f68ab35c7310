"""Hashes that depend on their input alone: equal in every process and on every machine."""

import hashlib


def short_hash(text: str) -> str:
    """The first 64 bits of a text's SHA-256, as 16 hex digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def stable_hash(text: str) -> int:
    """A 64-bit number that depends on the text alone (Python's `hash` changes with every process)."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
