"""Where a job writes: every place that its flags name is checked before the work, and nothing is left there.

An output never replaces what the job reads, nor a file of another kind, and a place that cannot be written is found at the
start instead of at the end.
"""

import json
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from vbd import storage
from vbd.errors import InputError, StoreError
from vbd.storage.ownership import OWNER

Kind = Literal["page", "picture", "scores", "examination", "coco", "submission", "folder", "predictions", "pictures"]

# Stand in every page and picture that vbd writes.
PAGE_MARK = '<meta name="generator" content="vbd">'
PICTURE_MARK = ("Software", "vbd")  # a text chunk of PNG
# In a folder of pictures or structured reports, whose files are named after the user's images.
FOLDER_MARK = ".vbd.json"
# A folder that jobs/predict.py fills; written first.
PREDICTIONS = "predictions.json"
SUBMISSION_HEADER = "image_id,PredictionString"
_SAMPLE_PREDICTION = "14 1 0 0 1 1"

_SUFFIXES: dict[Kind, tuple[str, ...]] = {
    "page": (".html", ".htm"),
    "picture": (".png",),
    "scores": (".json",),
    "examination": (".json",),
    "coco": (".json",),
    "submission": (".csv",),
}
_MARKED_BY: dict[Kind, str] = {"predictions": PREDICTIONS, "pictures": FOLDER_MARK}
# Keys that only such a JSON file has.
_KEYS: dict[Kind, set[str]] = {
    "scores": {"schema", "predictions", "part", "not_scored", "against"},
    "examination": {"schema", "submission", "rows", "not_scored"},
    "coco": {"image_id", "category_id", "bbox", "score"},  # of each entry
}


def check_outputs(
    outputs: Mapping[str, tuple[str | None, Kind]],
    *,
    reads: Mapping[str, str | None] | None = None,
    beside: Mapping[str, str | None] | None = None,
) -> None:
    """Raises InputError, in one line, for an output that would do harm or that cannot be written; writes nothing.

    All places stand by the flag that names them; None and "" are left out. Nothing may be written into what the job `reads`;
    directly in a folder that outputs may lie `beside`, such as a run's, a new file may. Waits for a store that does not answer.
    """
    named = {flag: (location, kind) for flag, (location, kind) in outputs.items() if location}
    seen: dict[str, str] = {}
    for flag, (location, kind) in named.items():
        place = _place(location)
        if place in seen:
            raise InputError(f"{flag} {location}: {seen[place]} names the same place; choose another one")
        seen[place] = flag
        _check_name(flag, location, kind)
        for read, near in ((reads or {}, False), (beside or {}, True)):
            for other, source in read.items():
                if source:
                    _check_apart(flag, location, other, source, may_lie_beside=near)
        _check_replaced(flag, location, kind)
    for flag, (location, kind) in named.items():
        _check_writable(flag, location, is_folder=kind not in _SUFFIXES)


def _place(location: str) -> str:
    return storage.absolute(location).rstrip("/")


def _check_name(flag: str, location: str, kind: Kind) -> None:
    wanted = _SUFFIXES.get(kind, ())
    if wanted and not location.lower().endswith(wanted):
        raise InputError(f"{flag} {location}: want a file that ends in {wanted[0]}")


def _check_apart(flag: str, location: str, other: str, source: str, *, may_lie_beside: bool) -> None:
    place, read = _place(location), _place(source)
    if place == read:
        raise InputError(f"{flag} {location}: {other} reads it; choose another place")
    above = place.rpartition("/")[0]
    if place.startswith(f"{read}/") and not (may_lie_beside and above == read):
        raise InputError(f"{flag} {location}: lies within {source}, which {other} reads; choose another place")


def _check_replaced(flag: str, location: str, kind: Kind) -> None:
    """Raises InputError for a place that holds something else than an earlier output of the same kind."""
    if not storage.exists(location):
        return
    if kind not in _SUFFIXES:
        if not storage.is_folder(location):
            raise InputError(f"{flag} {location}: is a file, want a folder; choose another place")
        mark, names = _MARKED_BY.get(kind), [name for name in storage.list_names(location) if name != OWNER]
        if mark and names and mark not in names:
            raise InputError(
                f"{flag} {location}: holds other files, such as {names[0]}; choose an empty or a new folder"
            )
        return
    if storage.is_folder(location):
        raise InputError(f"{flag} {location}: is a folder, want a file; add its name, ending in {_SUFFIXES[kind][0]}")
    if not _is_ours(storage.read_bytes(location), kind):
        raise InputError(
            f"{flag} {location}: holds a file that was not written by this flag; choose another place, or remove that file"
        )


def _is_ours(data: bytes, kind: Kind) -> bool:
    """Whether a file is an earlier output of this kind, by what it holds."""
    match kind:
        case "page":
            return PAGE_MARK.encode() in data[:2000]
        case "picture":
            return "\0".join(PICTURE_MARK).encode() in data[:2000]
        case "submission":
            header, *rows = data.decode(errors="replace").splitlines() or [""]
            is_sample = bool(rows) and all(row.endswith(f",{_SAMPLE_PREDICTION}") for row in rows)
            return header == SUBMISSION_HEADER and not is_sample
        case _:
            try:
                value = json.loads(data)
            except (ValueError, RecursionError):
                return False
            entries = value if kind == "coco" and isinstance(value, list) else [value]
            return all(isinstance(entry, dict) and entry.keys() >= _KEYS[kind] for entry in entries)


def _check_writable(flag: str, location: str, *, is_folder: bool) -> None:
    """Raises InputError for a place in which no file can be made, by making one that is gone at once."""
    try:
        if storage.is_local(location):
            folder = Path(_place(location)) if is_folder else Path(_place(location)).parent
            while not folder.exists() and folder != folder.parent:
                folder = folder.parent
            with tempfile.TemporaryFile(dir=folder):  # has no name where the file system can do that
                pass
            return
        probe = f"{location.rstrip('/')}{'/' if is_folder else '.'}{uuid.uuid4().hex[:8]}.tmp"
        try:
            storage.write_bytes(probe, b"")
            storage.delete_file(probe)
        except StoreError as error:
            raise type(error)(f"{flag} {str(error).replace(probe, location)}") from None
    except NotADirectoryError:
        raise InputError(f"{flag} {location}: cannot be written ({folder} is a file); choose another place") from None
    except OSError as error:
        raise InputError(f"{flag} {location}: cannot be written ({error.strerror}); choose another place") from None
