"""What jobs delete: files that vbd wrote, by their names. Anything else is left, and named in one line.

vbd never writes links, so none is followed and none is removed. A link above what is deleted, such as `runs -> /mnt/big/runs`,
leads where the user wants it.
"""

import contextlib
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from vbd import storage

# A file is written in seconds, a folder copied in minutes.
_LEFTOVER_SECONDS = 3600.0
_MOST_NAMES = 3

_reported: set[str] = set()


def delete_folder(location: str, is_ours: Callable[[str], object]) -> None:
    """Deletes the files directly in a folder whose names are ours, and the folder when nothing else is in it."""
    if storage.is_link(location) or not storage.is_folder(location):
        if storage.exists(location) or storage.is_link(location):
            folder, _, name = location.rstrip("/").rpartition("/")
            report_strangers(folder, [name])
        return
    if not keep_only(location, set(), is_ours):
        _remove_empty_folder(location)


def _remove_empty_folder(location: str) -> None:
    files, path = storage.filesystem(location)
    with contextlib.suppress(OSError):  # somebody has put something there meanwhile; an empty folder is in nobody's way
        if storage.is_local(location):
            Path(path).rmdir()
        else:
            files.delete_dir(path)


def keep_only(folder: str, wanted: set[str], is_ours: Callable[[str], object]) -> list[str]:
    """Deletes the files directly in a folder whose names are ours but not `wanted`; returns what else is there."""
    mine = [
        name
        for name in storage.list_files(folder)
        if name not in wanted
        and (is_ours(name) or storage.is_leftover(name))
        and not storage.is_link(storage.join(folder, name))
    ]
    strangers = sorted(set(storage.list_names(folder)) - wanted - set(mine))
    storage.in_threads(storage.delete_file, [storage.join(folder, name) for name in mine])
    report_strangers(folder, strangers)
    return strangers


def report_strangers(folder: str, names: Sequence[str]) -> None:
    """Prints once what is left alone in a folder."""
    if names and folder not in _reported:
        _reported.add(folder)
        more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
        print(f"{folder}: left alone, not written by vbd: {', '.join(names[:_MOST_NAMES])}{more}", flush=True)


def remove_leftovers(location: str) -> None:
    """Removes from a folder of this machine, not from those below it, what writers left that were killed an hour ago or more.

    One that is still writing may be as slow as that, and no slower.
    """
    if not storage.is_local(location):
        return  # an upload that was cut off leaves nothing
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for path in Path(storage.absolute(location)).iterdir():
            with contextlib.suppress(OSError):  # gone meanwhile, or somebody else's: it is in nobody's way
                is_ours = storage.is_leftover(path.name) and not path.is_symlink()
                if is_ours and time.time() - path.lstat().st_mtime > _LEFTOVER_SECONDS:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()


def missing_folders(location: str) -> list[Path]:
    """The folder and those above it that are not there yet, the lowest first; none in an object store."""
    if not storage.is_local(location):
        return []
    folder = Path(storage.absolute(location))
    return [each for each in (folder, *folder.parents) if not each.exists()]


def remove_empty(folders: Sequence[Path]) -> None:
    """Removes folders that hold nothing, up to the first one that does."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()
