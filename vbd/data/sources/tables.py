"""What every source of labelled X-rays comes down to, and what its readers share."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from vbd import storage
from vbd.data.rejects import Reject, reject
from vbd.errors import InputError, StoreError
from vbd.labels import label_of
from vbd.records import READING_COLUMNS

if TYPE_CHECKING:
    import pandas as pd

Kind = Literal["competition", "yolo", "coco"]

IMAGE_SUFFIXES = (".dicom", ".dcm", ".png", ".jpg", ".jpeg")
DICOM_SUFFIXES = IMAGE_SUFFIXES[:2]
IMAGE_COLUMNS = ("image_id", "path", "split", "height", "width", "size", "mtime_ns")
TRUTH_COLUMNS = ("image_id", "label", "x_min", "y_min", "x_max", "y_max")
# The reader of a data set that does not tell its readers apart.
CONSENSUS = "consensus"
# Lists of a YOLO folder's images, and the part that each names: train and val are both training images here.
LIST_FILES: dict[str, Literal["train", "test"]] = {
    "train.txt": "train",
    "val.txt": "train",
    "valid.txt": "train",
    "test.txt": "test",
}
# Written beside synthetic films.
SYNTHETIC_MARK = "SYNTHETIC.json"

# Reasons that several kinds of source give.
ALL_REFUSED = "its findings were all refused, and it is not normal"
CONTRADICTED = "No finding beside a finding by the same reader"
DUPLICATE = "duplicate row"
IN_BOTH_PARTS = "the test part has an image with this id"


@dataclass(frozen=True)
class Source:
    """A folder of labelled X-rays, read but not decoded. All boxes are in ORIGINAL pixels."""

    kind: Kind
    # IMAGE_COLUMNS: path absolute, split "train" or "test", height and width of the ORIGINAL image (NaN when only
    # decoding can tell), size of the file in bytes, mtime_ns its time (0 when the store does not tell).
    images: "pd.DataFrame"
    readings: "pd.DataFrame"  # READING_COLUMNS, of the train part, sorted
    readers: "pd.DataFrame"  # image_id, rad_id: who read which image of the train part, sorted
    rejects: list[Reject]
    truth: "pd.DataFrame | None"  # TRUTH_COLUMNS of the test part, where known; an image without a row is normal
    sample_submission: list[str]  # ids of the test part, in the order of its sample submission
    synthetic: bool
    fingerprint: str  # of the label files' bytes, and of the images' names and sizes


@dataclass(frozen=True)
class Listing:
    """What lies in a folder, from one listing."""

    images: "pd.DataFrame"  # image_id, path, name (relative to the folder), size in bytes, mtime_ns; sorted by name
    others: dict[str, int]  # size in bytes of all other files, by name relative to the folder; sorted


def list_folder(folder: str, *, recursive: bool = False) -> Listing:
    """The files in a folder; none when there is no such folder."""
    import pandas as pd

    found = storage.list_files(folder, recursive=recursive)
    rows = sorted((name, facts.size, facts.mtime_ns) for name, facts in found.items())
    images = [row for row in rows if row[0].lower().endswith(IMAGE_SUFFIXES)]
    names = [name for name, _, _ in images]
    table = pd.DataFrame(
        {
            "image_id": pd.Series([stem_of(name) for name in names], dtype=object),
            "path": pd.Series([storage.join(folder, name) for name in names], dtype=object),
            "name": pd.Series(names, dtype=object),
            "size": pd.Series([size for _, size, _ in images], dtype="int64"),
            "mtime_ns": pd.Series([mtime_ns for _, _, mtime_ns in images], dtype="int64"),
        }
    )
    return Listing(table, {name: size for name, size, _ in rows if not name.lower().endswith(IMAGE_SUFFIXES)})


def stem_of(name: str) -> str:
    """`train/a.b.png` -> `a.b`: the image id of a file."""
    return name.rsplit("/", 1)[-1].rsplit(".", 1)[0]


def refuse_broken(images: "pd.DataFrame") -> "tuple[pd.DataFrame, list[Reject]]":
    """Takes out image files that are hidden, empty, or whose name is no safe id."""
    hidden = images["name"].map(lambda name: name.startswith(".") or "/." in name).astype(bool)
    unsafe = ~images["image_id"].map(storage.is_safe_id).astype(bool)
    return _refuse(
        images,
        (hidden, "hidden file, or in a hidden folder"),
        (unsafe, "file name is not a safe image id (ASCII letters, digits, '_', '-', '.')"),
        (images["size"] == 0, "empty file (0 bytes)"),
    )


def refuse_repeated(images: "pd.DataFrame") -> "tuple[pd.DataFrame, list[Reject]]":
    """Takes out image files whose id an earlier one has already."""
    return _refuse(images, (images["image_id"].duplicated(), "another file has the same image id"))


def _refuse(images: "pd.DataFrame", *checks: "tuple[pd.Series[bool], str]") -> "tuple[pd.DataFrame, list[Reject]]":
    """Takes out the rows that fail a check; the first that a row fails is told."""
    reasons = np.full(len(images), "", object)
    for fails, reason in reversed(checks):
        reasons[fails.to_numpy(bool)] = reason
    rejects = [reject(path, 0, reason) for path, reason in zip(images["path"], reasons, strict=True) if reason]
    return images[reasons == ""].reset_index(drop=True), rejects


def image_table(images: "pd.DataFrame", split: str, sizes: Mapping[str, tuple[float, float]]) -> "pd.DataFrame":
    """Rows of `Source.images`; `sizes` gives the (height, width) of the images where it is known."""
    unknown = (float("nan"), float("nan"))
    known = [sizes.get(image_id, unknown) for image_id in images["image_id"]]
    table = images[["image_id", "path", "size", "mtime_ns"]].assign(
        split=split, height=[float(hw[0]) for hw in known], width=[float(hw[1]) for hw in known]
    )
    return table.astype({"split": object})[list(IMAGE_COLUMNS)]


def assemble(kind: Kind, images: "pd.DataFrame", boxes: "pd.DataFrame", *, has_truth: bool, **rest: Any) -> Source:
    """A source without readers of its own: `images` (IMAGE_COLUMNS) and `boxes` (TRUTH_COLUMNS) of both parts."""
    import pandas as pd

    images = images.sort_values("image_id", ignore_index=True)
    split = dict(zip(images["image_id"], images["split"], strict=True))
    is_test = boxes["image_id"].map(split) == "test"
    train_ids = images.loc[images["split"] == "train", "image_id"].to_numpy(object)
    return Source(
        kind=kind,
        images=images,
        readings=in_order(boxes[~is_test].assign(rad_id=CONSENSUS).astype({"rad_id": object}), READING_COLUMNS),
        readers=pd.DataFrame({"image_id": train_ids, "rad_id": CONSENSUS}).astype(object),
        truth=in_order(boxes[is_test], TRUTH_COLUMNS) if has_truth else None,
        sample_submission=images.loc[images["split"] == "test", "image_id"].tolist(),
        **rest,
    )


def in_order(table: "pd.DataFrame", columns: Sequence[str]) -> "pd.DataFrame":
    """Some columns of a table, its rows sorted by them: nothing may depend on the order of rows in a file."""
    return table[list(columns)].sort_values(list(columns), ignore_index=True)


def box_table(rows: list[tuple[Any, ...]]) -> "pd.DataFrame":
    """Rows (image_id, label, x_min, y_min, x_max, y_max) as a table with the right types, empty or not."""
    import pandas as pd

    table = pd.DataFrame(rows, columns=list(TRUTH_COLUMNS))
    table[list(TRUTH_COLUMNS[2:])] = table[list(TRUTH_COLUMNS[2:])].astype("float64")
    return table.astype({"image_id": object, "label": "int64"})


def fingerprint(texts: Mapping[str, bytes], images: "pd.DataFrame") -> str:
    """SHA-256 over the label files' names and bytes, and the images' names and sizes."""
    digest = hashlib.sha256()
    for name, text in sorted(texts.items()):
        digest.update(f"{name}\n".encode() + hashlib.sha256(text).digest())
    listing = sorted(zip(images["name"], images["size"], strict=True))
    digest.update("\n".join(f"{name} {size}" for name, size in listing).encode())
    return digest.hexdigest()


def decode_text(data: bytes, *, file: str) -> str:
    """UTF-8 text, with or without a byte order mark; raises InputError that names the line."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, told = encoding_fault(data, error)
        raise InputError(f"{file}:{line}: {told}; save it as UTF-8") from None


def encoding_fault(data: bytes, error: UnicodeDecodeError) -> tuple[int, str]:
    """The line on which a text stops to be UTF-8, and what stands there."""
    return data[: error.start].count(b"\n") + 1, f"not UTF-8 text (byte {data[error.start]:#04x})"


def read_sizes(paths: Sequence[str]) -> list[tuple[int, int] | None]:
    """Height and width that each file's header tells, None where it tells none; many at a time, in order."""
    from vbd.data.images.prepare import read_size

    def read(path: str) -> tuple[int, int] | None:
        try:
            return read_size(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"{path}: cannot be read ({str(error).splitlines()[0][:200]})") from error

    return storage.in_threads(read, paths)


class PathIndex:
    """Finds the file that a path written on another machine means: the one that shares the most trailing parts."""

    def __init__(self, names: Iterable[str]) -> None:
        self._by_base: dict[str, list[str]] = {}
        for name in sorted(names):
            self._by_base.setdefault(name.rsplit("/", 1)[-1], []).append(name)

    def find(self, path: str) -> str | None:
        """The name of the file, None when no file has the path's base name."""
        parts = path.replace("\\", "/").split("/")
        named = self._by_base.get(parts[-1], [])
        return max(named, key=lambda name: _shared_parts(name.split("/"), parts), default=None)


def _shared_parts(a: Sequence[str], b: Sequence[str]) -> int:
    """How many trailing parts two paths have in common."""
    shared = 0
    for left, right in zip(reversed(a), reversed(b), strict=False):
        if left != right:
            break
        shared += 1
    return shared


def known_labels(names: Mapping[Any, str], *, file: str) -> dict[Any, int | None]:
    """Our label for each of a file's own classes, None for a class we do not know; not one known is an InputError."""
    labels: dict[Any, int | None] = {}
    faults = []
    for number, name in names.items():
        try:
            labels[number] = label_of(name)
        except InputError as error:
            labels[number] = None
            faults.append(error)
    if faults and len(faults) == len(labels):
        raise InputError(f"{file}: {faults[0]}")
    return labels
