"""The first difference between two descriptions of a run, as one short line: why a folder refuses another run."""

from typing import Any

_LONGEST_VALUE = 50
_LONGEST_PATH = 80


class _Missing:
    """Stands for a field that only the other description has."""

    def __repr__(self) -> str:
        return "missing"


_MISSING = _Missing()


def first_difference(theirs: Any, mine: Any, path: str = "") -> str:
    """The first place where two JSON values differ, as `path was theirs, is mine`, in less than 200 characters."""
    if isinstance(theirs, dict) and isinstance(mine, dict):
        for key in sorted({*theirs, *mine}):
            one, other = theirs.get(key, _MISSING), mine.get(key, _MISSING)
            if one != other:
                return first_difference(one, other, f"{path}.{key}" if path else key)
    if isinstance(theirs, list) and isinstance(mine, list) and len(theirs) == len(mine):
        for i, (one, other) in enumerate(zip(theirs, mine, strict=True)):
            if one != other:
                return first_difference(one, other, f"{path}[{i}]")
    return f"{shortened_path(path)} was {shortened(theirs)}, is {shortened(mine)}"


def shortened(value: Any) -> str:
    """A JSON value in a few characters of one line: of a long text its beginning, of a long list how many items it has."""
    if isinstance(value, (dict, list, tuple)):
        count = f"{len(value)} {'fields' if isinstance(value, dict) else 'items'}"
        if len(value) > _LONGEST_VALUE:  # its text may be large
            return count
        text = repr(value)
        return text if len(text) <= _LONGEST_VALUE else count
    text = repr(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 3]}..."


def shortened_path(path: str) -> str:
    """A dotted path on one line; the middle of a long one is left out."""
    text = repr(path)[1:-1]
    half = _LONGEST_PATH // 2 - 2
    return text if len(text) <= _LONGEST_PATH else f"{text[:half]}...{text[-half:]}"
