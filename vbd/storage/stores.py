"""The file systems behind locations, through `pyarrow.fs`: lists files and removes them."""

import contextlib
import functools
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vbd.errors import InputError, first_line
from vbd.storage.credentials import refuse_credentials
from vbd.storage.paths import absolute, is_link, is_local
from vbd.storage.waiting import faults_reported, store_error, waits_for_store

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem, FileType

# S3: a file is sent when it is whole, in one request instead of three where it is below ten megabytes. Google Cloud Storage:
# its client tries again for a quarter of an hour, and says nothing meanwhile; ours says so.
_OPTIONS = {"s3": "allow_delayed_open=true", "gs": "retry_limit_seconds=10"}


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
        raise store_error(f"{location}: cannot open this store", error) from error
    except ValueError as error:
        raise InputError(f"{location}: cannot open this store ({first_line(error)})") from error
    return files, f"{root}{slash}{path}".rstrip("/")


@functools.lru_cache(maxsize=16)
def _open_store(store: str) -> "tuple[FileSystem, str]":
    """One client for each bucket and process: making one asks the store where the bucket lies."""
    from pyarrow import fs

    return fs.FileSystem.from_uri(store)


def exists(location: str) -> bool:
    """Whether there is a file or folder at a location."""
    from pyarrow.fs import FileType

    return _type_of(location) != FileType.NotFound


def is_folder(location: str) -> bool:
    """Whether there is a folder at a location."""
    from pyarrow.fs import FileType

    return _type_of(location) == FileType.Directory


@waits_for_store
def _type_of(location: str) -> "FileType":
    files, path = filesystem(location)
    try:
        return files.get_file_info(path).type
    except OSError as error:
        raise store_error(f"{location}: cannot be looked up", error) from error


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


@waits_for_store
def _listing(location: str, *, recursive: bool) -> "list[FileInfo]":
    from pyarrow.fs import FileSelector

    files, path = filesystem(location)
    if recursive and is_local(location):
        _refuse_loops(Path(path))
    try:
        return files.get_file_info(FileSelector(path, recursive=recursive, allow_not_found=True))
    except OSError as error:
        what = f"{location}: not a folder that can be listed"
        raise (
            InputError(f"{what} ({first_line(error)})") if is_local(location) else store_error(what, error)
        ) from error


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


@waits_for_store
def delete_file(location: str) -> None:
    """Removes a file; nothing happens when there is none. Raises InputError for a link, which vbd never writes."""
    files, path = filesystem(location)
    if is_link(location):
        raise InputError(f"{location}: a link to {path}, which vbd did not write and would delete; remove the link")
    with faults_reported(location), contextlib.suppress(FileNotFoundError):
        files.delete_file(path)


@waits_for_store
def move_file(source: str, target: str) -> None:
    """Gives a file another name in the same store, replacing what has it: on a disk by renaming, else by a copy there."""
    files, path = filesystem(source)
    _, wanted = filesystem(target)
    with faults_reported(target):
        if is_local(target):
            os.replace(path, wanted)
        else:
            files.move(path, wanted)


def touch(location: str) -> None:
    """Sets the time of a file of this machine to now; nothing happens when there is none."""
    with faults_reported(location), contextlib.suppress(FileNotFoundError):
        os.utime(absolute(location))


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
