"""What bulk data held that could not be used: one row of rejects.csv for each file or line, and a count for each reason."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

# What was refused, where it stood and why.
REJECT_COLUMNS = ("file", "row", "reason")
Reject = dict[str, Any]  # REJECT_COLUMNS; row 0 stands for a file as a whole


def reject(file: str, row: int, reason: str) -> Reject:
    """One line of rejects.csv."""
    return dict(zip(REJECT_COLUMNS, (file, row, reason), strict=True))


def reject_reasons(rejects: Sequence[Mapping[str, Any]]) -> list[tuple[str, int, str]]:
    """Reasons with their count and one example, most frequent first; values in a reason (`#`) do not tell them apart.

    The name of an unknown class does: a class that is spelt otherwise must not hide among others.
    """
    kinds = [_kind(str(row["reason"])) for row in rejects]
    examples = {
        kind: f"{row['file']}{':' + str(row['row']) if int(row['row']) else ''}: {row['reason']}"
        for kind, row in zip(reversed(kinds), reversed(rejects), strict=True)
    }
    return [(kind, count, examples[kind]) for kind, count in Counter(kinds).most_common()]


def _kind(reason: str) -> str:
    values = r"(?<![A-Za-z])(?<!UTF-)\d+(\.\d+)?"
    return reason if reason.startswith("unknown class") else re.sub(rf"'[^']*'|{values}", "#", reason)
