"""Reads and writes whole files.

A file that is written appears whole or not at all: a writer that is killed leaves no more than a `<name>.<8 hex digits>.tmp`,
which nobody reads and `vbd.storage.deletion` removes.
"""

import contextlib
import contextvars
import os
import shutil
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vbd.errors import InputError
from vbd.storage.paths import absolute, is_link, is_local
from vbd.storage.stores import exists, filesystem, is_folder, list_files
from vbd.storage.waiting import faults_reported, store_error, waits_for_store


@waits_for_store
def read_bytes(location: str) -> bytes:
    """All of a file; raises InputError when it cannot be read."""
    files, path = filesystem(location)
    try:
        with files.open_input_stream(path, compression=None) as stream:  # by default a name in .gz is unpacked
            return stream.readall()
    except FileNotFoundError:
        raise InputError(f"{location}: no such file") from None
    except OSError as error:
        raise store_error(f"{location}: cannot be read", error) from error


def in_threads(function: Callable[[str], Any], locations: Sequence[str]) -> list[Any]:
    """The function's value for each location, in order, several at a time: on an object store each is a round trip."""
    from concurrent.futures import ThreadPoolExecutor

    contexts = [contextvars.copy_context() for _ in locations]
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(lambda context, location: context.run(function, location), contexts, locations))


def read_many(locations: Sequence[str]) -> list[bytes]:
    """Many small files."""
    return in_threads(read_bytes, locations)


@waits_for_store
def write_bytes(location: str, data: bytes | memoryview) -> None:
    """Writes a file whole: to a temporary name, then renamed. Makes the folders above it."""
    files, path = filesystem(location)
    with faults_reported(location):
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


@waits_for_store
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
    with faults_reported(location):
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


@waits_for_store
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
    with faults_reported(target):
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
