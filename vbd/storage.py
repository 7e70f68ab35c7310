"""The one place that opens paths: a local disk, NFS or an object store, through `pyarrow.fs`.

A location is a plain path or a URI (`s3://bucket/folder`, `gs://...`). What is written appears whole or not at all.
"""

import contextlib
import csv
import errno
import functools
import hashlib
import io
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vbd.errors import InputError, StoreError

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow.fs import FileInfo, FileSystem

T = TypeVar("T")

_SAFE_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")


def is_safe_id(image_id: str) -> bool:
    """Whether an image id may become a file's name: no separators, no leading dot, ASCII, at most 200 characters."""
    return _SAFE_ID.fullmatch(image_id) is not None


def is_local(location: str) -> bool:
    """Whether a location is a plain path of this machine."""
    return "://" not in location or location.startswith("file://")


def join(location: str, *parts: str) -> str:
    """A location below another one."""
    return "/".join([location.rstrip("/") or "/", *parts])


def absolute(location: str) -> str:
    """The same location, independent of the working directory (Ray changes that in its workers)."""
    return str(Path(location.removeprefix("file://")).expanduser().resolve()) if is_local(location) else location


def filesystem(location: str) -> "tuple[FileSystem, str]":
    """pyarrow's file system for a location, and the path within it. Credentials come from the environment only."""
    from pyarrow import fs  # 0.2 s: kept out of --help

    if is_local(location):
        return fs.LocalFileSystem(), absolute(location)
    store, slash, path = location.partition("://")[2].partition("/")
    try:
        if "?" in location:
            return fs.FileSystem.from_uri(location)
        files, root = _open_store(f"{location.partition('://')[0]}://{store}")
    except OSError as error:
        raise StoreError(f"{location}: cannot open this store ({_first_line(error)})") from error
    except ValueError as error:
        raise InputError(f"{location}: cannot open this store ({_first_line(error)})") from error
    return files, f"{root}{slash}{path}".rstrip("/")


@functools.lru_cache(maxsize=16)
def _open_store(store: str) -> "tuple[FileSystem, str]":
    """One client for each bucket and process: making one asks the store where the bucket lies."""
    from pyarrow import fs

    return fs.FileSystem.from_uri(store)


def exists(location: str) -> bool:
    """Whether there is a file or folder at a location."""
    from pyarrow.fs import FileType

    files, path = filesystem(location)
    try:
        return files.get_file_info(path).type != FileType.NotFound
    except OSError as error:
        raise StoreError(f"{location}: cannot be looked up ({_first_line(error)})") from error


@dataclass(frozen=True)
class FileFacts:
    """What a listing tells of a file."""

    size: int  # bytes
    mtime_ns: int  # when it was last written; 0 when the store does not tell


def list_files(location: str, *, recursive: bool = False) -> dict[str, FileFacts]:
    """The files in a folder by name, relative to it, from one listing; empty when there is no such folder."""
    from pyarrow.fs import FileType

    _, root = filesystem(location)
    return {
        info.path[len(root) :].lstrip("/"): FileFacts(info.size, info.mtime_ns or 0)
        for info in _listing(location, recursive=recursive)
        if info.type == FileType.File
    }


def list_names(location: str) -> list[str]:
    """Names of what lies directly in a folder, sorted; empty when there is no such folder."""
    return sorted(info.base_name for info in _listing(location, recursive=False))


def _listing(location: str, *, recursive: bool) -> "list[FileInfo]":
    from pyarrow.fs import FileSelector

    files, path = filesystem(location)
    try:
        return files.get_file_info(FileSelector(path, recursive=recursive, allow_not_found=True))
    except OSError as error:
        kind = InputError if is_local(location) else StoreError
        raise kind(f"{location}: not a folder that can be listed ({_first_line(error)})") from error


def read_bytes(location: str) -> bytes:
    """All of a file; raises InputError when it cannot be read."""
    files, path = filesystem(location)
    try:
        with files.open_input_stream(path, compression=None) as stream:  # by default a name in .gz is unpacked
            return stream.readall()
    except FileNotFoundError:
        raise InputError(f"{location}: no such file") from None
    except OSError as error:
        raise StoreError(f"{location}: cannot be read ({_first_line(error)})") from error


def in_threads(function: Callable[[str], Any], locations: Sequence[str]) -> list[Any]:
    """The function's value for each location, in order, several at a time: on an object store each is a round trip."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(function, locations))


def read_many(locations: Sequence[str]) -> list[bytes]:
    """Many small files."""
    return in_threads(read_bytes, locations)


def write_bytes(location: str, data: bytes | memoryview) -> None:
    """Writes a file whole: to a temporary name, then renamed. Makes the folders above it."""
    files, path = filesystem(location)
    with _faults_told(location):
        if not is_local(location):  # a PUT to an object store is atomic by itself
            with files.open_output_stream(path) as stream:
                stream.write(data)
            return
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        temporary = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            with open(temporary, "wb") as stream:
                stream.write(data)
                stream.flush()
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def read_json(location: str) -> Any:
    """A JSON file; raises InputError that names the line when it is not JSON."""
    try:
        return json.loads(read_bytes(location))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{location}: not valid JSON ({_first_line(error)})") from None


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
        raise InputError(f"{location}: not a readable Parquet file ({_first_line(error)})") from error


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


def copy_folder(source: str, target: str) -> None:
    """Copies a folder to another location, replacing what lies there; on a disk, whole or not at all."""
    from pyarrow import fs

    source_files, source_path = filesystem(source)
    target_files, target_path = filesystem(target)
    written = f"{target_path}.{uuid.uuid4().hex[:8]}.tmp" if is_local(target) else target_path
    with _faults_told(target):
        target_files.create_dir(written, recursive=True)
        fs.copy_files(source_path, written, source_filesystem=source_files, destination_filesystem=target_files)
        if written != target_path:
            delete_folder(target)
            os.replace(written, target_path)


def delete_folder(location: str) -> None:
    """Removes a folder with all below it; nothing happens when there is none."""
    files, path = filesystem(location)
    with _faults_told(location), contextlib.suppress(FileNotFoundError):
        files.delete_dir(path)


def delete_file(location: str) -> None:
    """Removes a file; nothing happens when there is none."""
    files, path = filesystem(location)
    with _faults_told(location), contextlib.suppress(FileNotFoundError):
        files.delete_file(path)


def move_file(source: str, target: str) -> None:
    """Gives a file another name in the same store, replacing what has it: on a disk by renaming, else by a copy there."""
    files, path = filesystem(source)
    _, wanted = filesystem(target)
    with _faults_told(target):
        if is_local(target):
            os.replace(path, wanted)
        else:
            files.move(path, wanted)


def keep_only(location: str, wanted: Mapping[str, set[str]]) -> None:
    """Removes from each of some folders below a location the files that are not among the names given for it."""
    for part, names in wanted.items():
        folder = join(location, part)
        in_threads(delete_file, [join(folder, name) for name in sorted(set(list_files(folder)) - names)])


def need_space(location: str, wanted_bytes: int) -> None:
    """Raises InputError when a local disk has less room than a job is about to use."""
    if not is_local(location):
        return
    folder = Path(absolute(location))
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < wanted_bytes:
        raise InputError(
            f"{location}: {free / 1e6:,.0f} MB free, about {wanted_bytes / 1e6:,.0f} MB needed; "
            "free some or choose another folder"
        )


def patiently(action: Callable[[], T], *, seconds: float, say: Callable[[str], None]) -> T:
    """What `action` returns; a place out of reach or full is tried again for so long, at growing intervals.

    Raises the last StoreError.
    """
    deadline, pause = time.monotonic() + seconds, 0.5
    while True:
        try:
            return action()
        except StoreError as error:
            left = deadline - time.monotonic()
            if left <= 0:
                raise
            say(f"{error}; tried again for {left:.0f} s")
            time.sleep(min(pause, left))
            pause = min(2 * pause, 30.0)


def stable_hash(text: str) -> int:
    """A 64-bit number that depends on the text alone (Python's `hash` changes with every process)."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


@contextlib.contextmanager
def _faults_told(location: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreError(f"{location}: no space left on the device; free some or choose another folder") from error
        raise StoreError(f"{location}: cannot be written ({_first_line(error)}); choose another place") from error


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and value != value else value


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
