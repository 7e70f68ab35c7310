"""Numbers, durations and tables in words: one form of each for log lines, pages and errors."""

from collections.abc import Iterable, Sequence


def count_of(number: int, one: str, many: str = "") -> str:
    """`1 box`, `1,200 boxes`; `many` is the plural where it is not `one` and an s."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def in_hours(hours: float) -> str:
    """`0.012`, `3.4`, `1,250`: two digits, or whole ones."""
    return f"{hours:,.0f}" if hours >= 10 else f"{float(f'{hours:.2g}'):g}"


def in_time(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 20 min`, `5 d 3 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 72 else f"{hours // 24} d {hours % 24} h"


def table_lines(rows: Iterable[Sequence[str]], *, numbers: bool = True) -> list[str]:
    """Rows of cells as lines with aligned columns, two spaces apart: the first column to the left.

    The others hold `numbers`, which stand to the right, or else texts, which stand to the left. Rows have equal lengths.
    """
    rows = [tuple(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if numbers and place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines
