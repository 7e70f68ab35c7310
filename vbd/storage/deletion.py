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
from vbd.errors import StoreError

# A file is written in seconds, a folder copied in minutes.
_LEFTOVER_SECONDS = 3600.0
_MOST_NAMES = 3

_reported: set[tuple[str, str]] = set()


def delete_folder(location: str, is_ours: Callable[[str], object]) -> None:
    """Deletes the files directly in a folder whose names are ours, and the folder when nothing else is in it."""
    if storage.is_link(location) or not storage.is_folder(location):
        if storage.exists(location) or storage.is_link(location):
            folder, _, name = location.rstrip("/").rpartition("/")
            report_strangers(folder, [name])
        return
    if not keep_only(location, set(), is_ours):
        remove_empty([location])


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
    """Prints what is left alone in a folder, each name once."""
    new = [name for name in names if (folder, name) not in _reported]
    _reported.update((folder, name) for name in new)
    if new:
        more = f" and {len(new) - _MOST_NAMES} more" if len(new) > _MOST_NAMES else ""
        print(f"{folder}: left alone, not known to vbd: {', '.join(new[:_MOST_NAMES])}{more}", flush=True)


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


def missing_folders(location: str) -> list[str]:
    """The folder and those above it that are not there yet, the lowest first; of an object store the folder alone."""
    if not storage.is_local(location):
        return [] if storage.exists(location) else [location]
    folder = Path(storage.absolute(location))
    return [str(each) for each in (folder, *folder.parents) if not each.exists()]


def remove_empty(folders: Sequence[str]) -> None:
    """Removes folders, the lowest first, as far as they hold nothing."""
    with contextlib.suppress(OSError, StoreError):  # one that is not empty, or cannot be removed, is in nobody's way
        for location in folders:
            files, path = storage.filesystem(location)
            if storage.is_local(location):
                Path(path).rmdir()
            elif not storage.list_names(location):  # in which a deleted file has left an empty folder
                files.delete_dir(path)
