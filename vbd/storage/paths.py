"""Locations: plain paths and URIs (`s3://bucket/folder`, `gs://...`), without opening any."""

import errno
import re
from pathlib import Path

from vbd.errors import InputError, first_line

_SAFE_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")


_LEFTOVER = re.compile(r".+\.[0-9a-f]{8}\.tmp")


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
        path = Path(location.removeprefix("file://")).expanduser().resolve()
        _refuse_loop(path)
        return str(path)
    except (OSError, RuntimeError) as error:  # an unknown `~user`, a loop of links, a working directory that is deleted
        raise InputError(f"{location}: not a path that leads anywhere ({first_line(error)})") from None


def _refuse_loop(path: Path) -> None:
    """Raises OSError for a link that leads to itself, which `resolve` leaves as it is since Python 3.13."""
    try:
        path.stat()
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise


def shown(location: str) -> str:
    """A location as its user would type it here: relative where it lies below the working directory."""
    here = Path.cwd()
    if not is_local(location) or here == Path("/"):
        return location
    path = Path(absolute(location))
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


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
