"""A csv file as a table of text cells, in which each row knows its line and what is wrong with it.

Lines count from 1, the header included, as an editor shows them.
"""

import csv
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from vbd.data.rejects import Reject, reject
from vbd.data.sources.tables import decode_text
from vbd.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

_UNDECODED = "\ufffd"
# What people save a table with instead of commas.
_OTHER_SEPARATORS = (";", "\t", "|")


def read_csv(
    data: bytes, *, file: str, needed: Sequence[Sequence[str]], optional: Sequence[str] = ()
) -> "pd.DataFrame":
    """The wanted columns, stripped text in every cell, `line`, and `fault`: why a row cannot be read, "" when it can.

    Of each group in `needed` at least one column must be there, `optional` ones may be. Raises InputError for what is no
    csv table with these columns and at least one row; blank lines are passed over.
    """
    import pandas as pd

    text = _text(data, file)
    header, rows, lines = _parse(text, file)
    if not rows:
        raise InputError(f"{file}: no rows below the header; fetch it again")
    columns = _columns(header, needed, optional, file=file)
    width, is_undecoded = len(header), _UNDECODED in text
    faults = [""] * len(rows)
    for at, row in enumerate(rows):
        if len(row) != width and (len(row) < width or "".join(row[width:]).strip()):
            faults[at] = f"{len(row)} cells, but {width} columns in the header"
            rows[at] = row + [""] * (width - len(row))
        elif is_undecoded and any(_UNDECODED in row[column] for column in columns.values()):
            faults[at] = "not UTF-8 text"
    cells = {name: [row[column].strip() for row in rows] for name, column in columns.items()}
    return pd.DataFrame(cells | {"fault": faults}, dtype=object).assign(line=np.array(lines, np.int64))


def readable_rows(table: "pd.DataFrame", name: str) -> "tuple[pd.DataFrame, list[Reject]]":
    """The rows of `read_csv` without those that cannot be read; `name` is the file's, for the rejects."""
    broken = table[table["fault"] != ""]
    rejects = [reject(name, line, fault) for line, fault in zip(broken["line"], broken["fault"], strict=True)]
    return table[table["fault"] == ""].reset_index(drop=True), rejects


def _text(data: bytes, file: str) -> str:
    """The file's text; bytes that are no UTF-8 are marked, unless they stand in the header."""
    if not data.strip():
        raise InputError(f"{file}: empty file; fetch it again")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        decode_text(data.split(b"\n", 1)[0], file=file)
        return data.decode("utf-8-sig", errors="replace")


def _parse(text: str, file: str) -> tuple[list[str], list[list[str]], list[int]]:
    """The header, the rows that are not blank, and their lines."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows, lines = [], []
    try:
        header = [cell.strip() for cell in next(reader, [])]
        for row in reader:
            if "".join(row).strip():
                rows.append(row)
                lines.append(reader.line_num)
    except csv.Error as error:
        raise InputError(f"{file}:{reader.line_num}: not a csv table ({error})") from None
    for separator in _OTHER_SEPARATORS:
        if len(header) == 1 and separator in header[0]:
            raise InputError(f"{file}:1: separated by {separator!r}; save it as a csv separated by commas")
    return header, rows, lines


def _columns(
    header: list[str], needed: Sequence[Sequence[str]], optional: Sequence[str], *, file: str
) -> dict[str, int]:
    """Where each wanted column stands."""
    for group in needed:
        if not any(name in header for name in group):
            wanted, have = " or ".join(repr(name) for name in group), ", ".join(header)[:200]
            raise InputError(f"{file}:1: no column {wanted}; the columns are {have}")
    wanted_names = [*(name for group in needed for name in group), *optional]
    repeated = [name for name in wanted_names if header.count(name) > 1]
    if repeated:
        raise InputError(f"{file}:1: more than one column {repeated[0]!r}; leave one")
    return {name: header.index(name) for name in wanted_names if name in header}
