"""Where a process keeps what later processes may read again, also where neither home nor source folder can be written to."""

import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

_Function = TypeVar("_Function", bound=Callable[..., Any])


def private_folder(name: str) -> Path | None:
    """Returns a folder below the temporary folder that only this user can write to, or None if there can be none.

    It is the same for every process of this user: `/tmp/vbd-<user id>/<name>`. A folder that another user made there, or that
    others can open, is never used: what is read from it may be run as code.
    """
    try:
        parent = Path(tempfile.gettempdir(), f"vbd-{os.geteuid()}")
        for folder in (parent, parent / name):
            folder.mkdir(mode=0o700, exist_ok=True)
            found = folder.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
                return None
    except OSError:  # no temporary folder, or no room in it
        return None
    return parent / name


def writable_folder(location: str) -> Path | None:
    """Returns a folder, made when it is missing, or None if this user cannot write to it; the location may begin with `~`."""
    try:
        folder = Path(location).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: the user id has no home
        return None
    return folder if os.access(folder, os.W_OK | os.X_OK) else None


def compiled(function: _Function, *, error_model: Literal["python", "numpy"] = "numpy") -> _Function:
    """Returns the function compiled by numba when it is first called.

    `error_model` is numba's: a division by zero gives infinity or NaN ("numpy"), or raises ZeroDivisionError ("python").
    The machine code is kept for later processes in `__pycache__` beside the source or in the user's cache, as numba does. Where
    neither can be written to, as in a container with any user id, it is kept in a private temporary folder, or nowhere.
    """
    import numba  # takes 0.4 s to load

    try:
        return numba.njit(cache=True, error_model=error_model)(function)
    except RuntimeError as error:
        if "no locator available" not in str(error):
            raise
    folder = private_folder("numba")
    if folder is None:
        return numba.njit(error_model=error_model)(function)
    numba.config.CACHE_DIR = str(folder)
    return numba.njit(cache=True, error_model=error_model)(function)
