"""JSON, csv and Parquet files."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vbd.errors import InputError, first_line
from vbd.storage.files import read_bytes, write_bytes
from vbd.storage.paths import is_local
from vbd.storage.stores import filesystem
from vbd.storage.waiting import PASSING, store_error, waits_for_store

if TYPE_CHECKING:
    import pyarrow as pa


def read_json(location: str) -> Any:
    """A JSON file; raises InputError that names the line when it is not JSON."""
    try:
        return json.loads(read_bytes(location), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{location}: not valid JSON ({first_line(error)})") from None


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is no JSON")


def read_object(location: str) -> dict[str, Any]:
    """A JSON file that holds an object; raises InputError when it holds anything else."""
    value = read_json(location)
    if not isinstance(value, dict):
        raise InputError(f"{location}: holds a JSON {type(value).__name__}, want an object; was it written by vbd?")
    return value


def write_json(location: str, value: Any, *, compact: bool = False) -> None:
    """A JSON file with sorted keys, so that equal values give equal bytes; NaN becomes null.

    `compact` writes one line: ten times faster for large documents that nobody reads as text.
    """
    indent, separators = (None, (",", ":")) if compact else (1, None)
    text = json.dumps(_without_nan(value), indent=indent, separators=separators, sort_keys=True, allow_nan=False)
    write_bytes(location, f"{text}\n".encode())


def read_csv(location: str) -> list[dict[str, str]]:
    """The rows of a csv file with a header, as text."""
    return list(csv.DictReader(io.StringIO(read_bytes(location).decode())))


def write_csv(location: str, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """A csv file with a header, one line for each row."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(location, text.getvalue().encode())


@waits_for_store
def read_table(location: str, columns: list[str] | None = None) -> "pa.Table":
    """A Parquet file, or some of its columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    files, path = filesystem(location)
    try:
        return pq.read_table(path, columns=columns, filesystem=files, partitioning=None)
    except FileNotFoundError:
        raise InputError(f"{location}: no such file") from None
    except (OSError, pa.ArrowException) as error:
        if not is_local(location) and PASSING.search(str(error)):
            raise store_error(f"{location}: cannot be read", error) from error
        raise InputError(f"{location}: not a readable Parquet file ({first_line(error)})") from error


def write_table(location: str, table: "pa.Table", *, encoded: Sequence[str] = ()) -> int:
    """A Parquet file, written whole; returns its size. Columns in `encoded` hold files that are compressed already."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    compression = {name: "none" if name in encoded else "zstd" for name in table.column_names}
    # Statistics of a column of files would repeat whole files in the footer; a dictionary of them saves nothing.
    plain = [name for name in table.column_names if name not in encoded]
    pq.write_table(
        table,
        sink,
        compression=compression if encoded else "zstd",
        use_dictionary=plain if encoded else True,
        write_statistics=plain if encoded else True,
    )
    data = memoryview(sink.getvalue())
    write_bytes(location, data)
    return len(data)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and value != value else value
