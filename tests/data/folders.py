"""What tests of whole folders share."""

import hashlib
from pathlib import Path


def hashes_of(folder: str | Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by its path in it."""
    root = Path(folder)
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
