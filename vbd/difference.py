"""Where two descriptions of a run part, told to whoever asks one folder for two of them."""

from typing import Any


def first_difference(theirs: Any, mine: Any, path: str = "") -> str:
    """The first place where two JSON values differ, as `path was theirs, is mine`."""
    if isinstance(theirs, dict) and isinstance(mine, dict):
        for key in sorted({*theirs, *mine}):
            if theirs.get(key) != mine.get(key):
                return first_difference(theirs.get(key), mine.get(key), f"{path}.{key}" if path else key)
    if isinstance(theirs, list) and isinstance(mine, list) and len(theirs) == len(mine):
        for i, (one, other) in enumerate(zip(theirs, mine, strict=True)):
            if one != other:
                return first_difference(one, other, f"{path}[{i}]")
    return f"{path} was {theirs}, is {mine}"
