"""The one place that opens paths: a local disk, NFS or an object store, through `pyarrow.fs`.

A location is a plain path or a URI (`s3://bucket/folder`, `gs://...`). What is written appears whole or not at all: a writer that
is killed leaves no more than a `<name>.<8 hex digits>.tmp`, which nobody reads and `vbd.storage.deletion` removes. An object store
that does not answer is waited for, `PATIENCE_SECONDS` long.
"""

import contextlib
import contextvars
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
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from vbd.storage.credentials import refuse_credentials
from vbd.errors import FullError, InputError, StoreError, UnreachableError

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow.fs import FileInfo, FileSystem, FileType

T = TypeVar("T")
P = ParamSpec("P")

# How long a store that is out of reach is waited for, in all processes of a job whose environment says so.
PATIENCE_SECONDS = float(os.environ.get("VBD_PATIENCE_SECONDS", "600"))
# What object stores and the way to them say when another attempt may succeed.
_PASSING = re.compile(
    "NETWORK_CONNECTION|SLOW_DOWN|THROTTL|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|REQUEST_TIMEOUT|HTTP status 5|curlCode|"
    "UNAVAILABLE|DEADLINE_EXCEEDED|timed out",
    re.IGNORECASE,
)
# S3: a file is sent when it is whole, in one request instead of three where it is below ten megabytes. Google Cloud Storage:
# its client tries again for a quarter of an hour, and says nothing meanwhile; ours says so.
_OPTIONS = {"s3": "allow_delayed_open=true", "gs": "retry_limit_seconds=10"}
_SECONDS_BETWEEN_LINES = 5.0
_LEFTOVER = re.compile(r".+\.[0-9a-f]{8}\.tmp")

_is_waited_for = contextvars.ContextVar("is_waited_for", default=False)
_last_told = [0.0]

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
    """The same location, independent of the working directory (workers of a cluster have another one); raises InputError."""
    if not is_local(location):
        return location
    try:
        return str(Path(location.removeprefix("file://")).expanduser().resolve())
    except (OSError, RuntimeError) as error:  # an unknown `~user`, a loop of links, a working directory that is deleted
        raise InputError(f"{location}: not a path that leads anywhere ({_first_line(error)})") from None


def shown(location: str) -> str:
    """A location as its user would type it here: relative where it lies below the working directory."""
    here = Path.cwd()
    if not is_local(location) or here == Path("/"):
        return location
    path = Path(absolute(location))
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def filesystem(location: str) -> "tuple[FileSystem, str]":
    """pyarrow's file system for a location, and the path within it. Credentials come from the environment only."""
    from pyarrow import fs  # 0.2 s: kept out of --help

    if is_local(location):
        return fs.LocalFileSystem(), absolute(location)
    refuse_credentials(location)
    scheme, _, rest = location.partition("://")
    store, slash, path = rest.partition("/")
    try:
        files, root = _open_store(f"{scheme}://{store}?{_OPTIONS.get(scheme, '')}".rstrip("?"))
    except OSError as error:
        raise _fault(f"{location}: cannot open this store", error) from error
    except ValueError as error:
        raise InputError(f"{location}: cannot open this store ({_first_line(error)})") from error
    return files, f"{root}{slash}{path}".rstrip("/")


@functools.lru_cache(maxsize=16)
def _open_store(store: str) -> "tuple[FileSystem, str]":
    """One client for each bucket and process: making one asks the store where the bucket lies."""
    from pyarrow import fs

    return fs.FileSystem.from_uri(store)


def _waited_for(function: Callable[P, T]) -> Callable[P, T]:
    """The same function of locations, which waits for an object store that does not answer.

    Within `patiently` it does not wait by itself: whoever called that has said for how long.
    """

    @functools.wraps(function)
    def waiting(*values: P.args, **named: P.kwargs) -> T:
        is_far = any(isinstance(value, str) and not is_local(value) for value in (*values, *named.values()))
        if not is_far or _is_waited_for.get():
            return function(*values, **named)
        return patiently(
            lambda: function(*values, **named), seconds=PATIENCE_SECONDS, say=_say, faults=UnreachableError
        )

    return waiting


def _say(text: str) -> None:
    """A line now and then: many threads may wait for the same store."""
    now = time.monotonic()
    if now - _last_told[0] >= _SECONDS_BETWEEN_LINES:
        _last_told[0] = now
        print(text, flush=True)


def exists(location: str) -> bool:
    """Whether there is a file or folder at a location."""
    from pyarrow.fs import FileType

    return _type_of(location) != FileType.NotFound


def is_folder(location: str) -> bool:
    """Whether there is a folder at a location."""
    from pyarrow.fs import FileType

    return _type_of(location) == FileType.Directory


@_waited_for
def _type_of(location: str) -> "FileType":
    files, path = filesystem(location)
    try:
        return files.get_file_info(path).type
    except OSError as error:
        raise _fault(f"{location}: cannot be looked up", error) from error


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
    if location.startswith("gs://"):  # pyarrow's listing leaves out folders that nobody has made by themselves
        return sorted({name.partition("/")[0] for name in list_files(location, recursive=True)})
    return sorted(info.base_name for info in _listing(location, recursive=False))


@_waited_for
def _listing(location: str, *, recursive: bool) -> "list[FileInfo]":
    from pyarrow.fs import FileSelector

    files, path = filesystem(location)
    if recursive and is_local(location):
        _refuse_loops(Path(path))
    try:
        return files.get_file_info(FileSelector(path, recursive=recursive, allow_not_found=True))
    except OSError as error:
        what = f"{location}: not a folder that can be listed"
        raise (InputError(f"{what} ({_first_line(error)})") if is_local(location) else _fault(what, error)) from error


def _refuse_loops(folder: Path) -> None:
    """Raises InputError for a link to a folder that it lies in: all below would be listed forty times, until Linux refuses."""
    waiting: list[tuple[Path, frozenset[tuple[int, int]]]] = [(folder, frozenset())]
    while waiting:
        here, above = waiting.pop()
        try:
            facts = here.stat()
            below = [Path(entry) for entry in os.scandir(here) if entry.is_dir()]
        except OSError:  # not there, or closed to us: the listing will tell
            continue
        if (facts.st_dev, facts.st_ino) in above:
            raise InputError(f"{here}: a link to a folder that it lies in ({here.resolve()}); remove it")
        waiting += [(each, above | {(facts.st_dev, facts.st_ino)}) for each in below]


@_waited_for
def read_bytes(location: str) -> bytes:
    """All of a file; raises InputError when it cannot be read."""
    files, path = filesystem(location)
    try:
        with files.open_input_stream(path, compression=None) as stream:  # by default a name in .gz is unpacked
            return stream.readall()
    except FileNotFoundError:
        raise InputError(f"{location}: no such file") from None
    except OSError as error:
        raise _fault(f"{location}: cannot be read", error) from error


def in_threads(function: Callable[[str], Any], locations: Sequence[str]) -> list[Any]:
    """The function's value for each location, in order, several at a time: on an object store each is a round trip."""
    from concurrent.futures import ThreadPoolExecutor

    contexts = [contextvars.copy_context() for _ in locations]
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(lambda context, location: context.run(function, location), contexts, locations))


def read_many(locations: Sequence[str]) -> list[bytes]:
    """Many small files."""
    return in_threads(read_bytes, locations)


@_waited_for
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
        return json.loads(read_bytes(location), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{location}: not valid JSON ({_first_line(error)})") from None


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


@_waited_for
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
        if not is_local(location) and _PASSING.search(str(error)):
            raise _fault(f"{location}: cannot be read", error) from error
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


@_waited_for
def write_new(location: str, data: bytes) -> bool:
    """Writes a small file where there is none; returns whether there was none.

    On a disk only one of several processes can. An object store knows no such request: two may both take it to be new.
    """
    if not is_local(location):
        if exists(location):
            return False
        write_bytes(location, data)
        return True
    path = Path(absolute(location))
    with _faults_told(location):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(path, "xb") as stream:
                stream.write(data)
        except FileExistsError:
            return False
        except BaseException:
            path.unlink(missing_ok=True)
            raise
    return True


def touch(location: str) -> None:
    """Sets the time of a file of this machine to now; nothing happens when there is none."""
    with _faults_told(location), contextlib.suppress(FileNotFoundError):
        os.utime(absolute(location))


@_waited_for
def copy_folder(source: str, target: str) -> None:
    """Copies the files of a folder to another location, where they replace those of the same names.

    Other files there are left. On a disk where there are none, the folder appears whole or not at all.
    """
    from pyarrow import fs

    if is_link(target):
        raise InputError(f"{target}: a link to {absolute(target)}, whose files would be replaced; remove the link")
    if exists(target) and not is_folder(target):
        raise InputError(f"{target}: a file, where a folder is to be written; remove it")
    source_files, source_path = filesystem(source)
    target_files, target_path = filesystem(target)
    written = f"{target_path}.{uuid.uuid4().hex[:8]}.tmp" if is_local(target) else target_path
    with _faults_told(target):
        try:
            target_files.create_dir(written, recursive=True)
            names = list(list_files(source, recursive=True)) if written != target_path else []
            for name in names:  # Google's store knows no folders, so that copying would make none
                Path(written, name).parent.mkdir(parents=True, exist_ok=True)
            fs.copy_files(source_path, written, source_filesystem=source_files, destination_filesystem=target_files)
            if written != target_path:
                _replace_files(Path(written), Path(target_path), names)
        except BaseException:
            if written != target_path:
                shutil.rmtree(written, ignore_errors=True)
            raise


def _replace_files(written: Path, target: Path, names: Sequence[str]) -> None:
    """Moves the files of a folder to where some of them, and others, may lie already."""
    for name in names:
        (target / name).unlink(missing_ok=True)  # all of them first: old and new files never stand beside each other
    for folder in sorted({(target / name).parent for name in names} | {target}, reverse=True):  # the lowest first
        with contextlib.suppress(OSError):  # not there, or holds other files
            folder.rmdir()
    if not target.exists():
        os.replace(written, target)
        return
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(written / name, target / name)
    shutil.rmtree(written, ignore_errors=True)


def is_leftover(name: str) -> bool:
    """Whether a file or folder has the name of one that was being written when its writer was killed."""
    return _LEFTOVER.fullmatch(name) is not None


def is_link(location: str) -> bool:
    """Whether a location itself is a symbolic link; one above it does not count."""
    return is_local(location) and _unresolved(location).is_symlink()


def _unresolved(location: str) -> Path:
    """A path of this machine whose last part may be a link."""
    path = Path(location.removeprefix("file://").rstrip("/"))
    return Path(absolute(str(path.parent)), path.name)


@_waited_for
def delete_file(location: str) -> None:
    """Removes a file; nothing happens when there is none. Raises InputError for a link, which vbd never writes."""
    files, path = filesystem(location)
    if is_link(location):
        raise InputError(f"{location}: a link to {path}, which vbd did not write and would delete; remove the link")
    with _faults_told(location), contextlib.suppress(FileNotFoundError):
        files.delete_file(path)


@_waited_for
def move_file(source: str, target: str) -> None:
    """Gives a file another name in the same store, replacing what has it: on a disk by renaming, else by a copy there."""
    files, path = filesystem(source)
    _, wanted = filesystem(target)
    with _faults_told(target):
        if is_local(target):
            os.replace(path, wanted)
        else:
            files.move(path, wanted)


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


def patiently(
    action: Callable[[], T],
    *,
    seconds: float,
    say: Callable[[str], None],
    faults: type[StoreError] | tuple[type[StoreError], ...] = StoreError,
) -> T:
    """What `action` returns; a place out of reach or full is tried again for so long, at growing intervals.

    Raises the last of those `faults`.
    """
    deadline, pause = time.monotonic() + seconds, 0.5
    while True:
        before = _is_waited_for.set(True)
        try:
            return action()
        except faults as error:
            left = deadline - time.monotonic()
            if left <= 0:
                raise
            say(f"{error}; tried again for {left:.0f} s")
            time.sleep(min(pause, left))
            pause = min(2 * pause, 30.0)
        finally:
            _is_waited_for.reset(before)


def stable_hash(text: str) -> int:
    """A 64-bit number that depends on the text alone (Python's `hash` changes with every process)."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


@contextlib.contextmanager
def _faults_told(location: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise FullError(f"{location}: no space left on the device; free some or choose another folder") from error
        raise _fault(f"{location}: cannot be written", error, mend="choose another place") from error


def _fault(what: str, error: Exception, *, mend: str = "") -> StoreError:
    """One line of what has failed, as an error that tells whether waiting may help."""
    text = f"{what} ({_first_line(error)})" + (f"; {mend}" if mend else "")
    return UnreachableError(text) if _PASSING.search(str(error)) else StoreError(text)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and value != value else value


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
