"""What every source of labelled X-rays comes down to, and what its readers share."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from vbd import storage
from vbd.errors import InputError
from vbd.records import READING_COLUMNS
from vbd.rejects import Reject, reject

if TYPE_CHECKING:
    import pandas as pd

Kind = Literal["competition", "yolo", "coco"]

IMAGE_SUFFIXES = (".dicom", ".dcm", ".png", ".jpg", ".jpeg")
IMAGE_COLUMNS = ("image_id", "path", "split", "height", "width")
TRUTH_COLUMNS = ("image_id", "label", "x_min", "y_min", "x_max", "y_max")
# The reader of a data set that does not tell its readers apart.
CONSENSUS = "consensus"


@dataclass(frozen=True)
class Source:
    """A folder of labelled X-rays, read but not decoded. All boxes are in ORIGINAL pixels."""

    kind: Kind
    # IMAGE_COLUMNS: path absolute, split "train" or "test", height and width of the ORIGINAL image, NaN when only
    # decoding can tell.
    images: "pd.DataFrame"
    readings: "pd.DataFrame"  # READING_COLUMNS, of the train part
    readers: "pd.DataFrame"  # image_id, rad_id: who read which image of the train part
    rejects: list[Reject]
    truth: "pd.DataFrame | None"  # TRUTH_COLUMNS of the test part, where known; an image without a row is normal
    sample_submission: list[str]  # ids of the test part, in the order of its sample submission
    synthetic: bool
    fingerprint: str


def list_images(folder: str, *, recursive: bool = False) -> "pd.DataFrame":
    """Image files in a folder, sorted: `image_id, path, name` (relative to the folder), `size` in bytes."""
    import pandas as pd
    from pyarrow.fs import FileSelector, FileType

    files, root = storage.filesystem(folder)
    found = files.get_file_info(FileSelector(root, recursive=recursive, allow_not_found=True))
    rows = [
        (info.path[len(root) :].lstrip("/"), info.size)
        for info in found
        if info.type == FileType.File and info.path.lower().endswith(IMAGE_SUFFIXES)
    ]
    table = pd.DataFrame(sorted(rows), columns=["name", "size"])
    table["image_id"] = [name.rsplit("/", 1)[-1].rsplit(".", 1)[0] for name in table["name"]]
    table["path"] = [storage.join(folder, name) for name in table["name"]]
    return table.astype({"name": object, "image_id": object, "path": object, "size": "int64"})


def refuse_unusable(images: "pd.DataFrame") -> "tuple[pd.DataFrame, list[Reject]]":
    """Takes out image files whose name is no safe id, or whose id another file has already."""
    unsafe = ~images["image_id"].map(storage.is_safe_id).astype(bool)
    repeated = images["image_id"].duplicated() & ~unsafe
    rejects = [reject(path, 0, "file name is not a safe image id") for path in images.loc[unsafe, "path"]]
    rejects += [reject(path, 0, "another file has the same image id") for path in images.loc[repeated, "path"]]
    return images[~(unsafe | repeated)].reset_index(drop=True), rejects


def image_table(images: "pd.DataFrame", split: str, sizes: Mapping[str, tuple[float, float]]) -> "pd.DataFrame":
    """Rows of `Source.images`; `sizes` gives the (height, width) of the images where it is known."""
    unknown = (float("nan"), float("nan"))
    known = [sizes.get(image_id, unknown) for image_id in images["image_id"]]
    table = images[["image_id", "path"]].assign(
        split=split, height=[float(hw[0]) for hw in known], width=[float(hw[1]) for hw in known]
    )
    return table[list(IMAGE_COLUMNS)]


def assemble(kind: Kind, images: "pd.DataFrame", boxes: "pd.DataFrame", *, has_truth: bool, **rest: Any) -> Source:
    """A source without readers of its own: `images` (IMAGE_COLUMNS) and `boxes` (TRUTH_COLUMNS) of both parts."""
    import pandas as pd

    split = dict(zip(images["image_id"], images["split"], strict=True))
    is_test = boxes["image_id"].map(split) == "test"
    readings = boxes[~is_test].assign(rad_id=CONSENSUS)[list(READING_COLUMNS)].reset_index(drop=True)
    train_ids = images.loc[images["split"] == "train", "image_id"]
    return Source(
        kind=kind,
        images=images.sort_values("image_id", ignore_index=True),
        readings=readings,
        readers=pd.DataFrame({"image_id": train_ids.to_numpy(object), "rad_id": CONSENSUS}),
        truth=boxes[is_test].reset_index(drop=True) if has_truth else None,
        sample_submission=sorted(images.loc[images["split"] == "test", "image_id"]),
        **rest,
    )


def box_table(rows: list[tuple[Any, ...]]) -> "pd.DataFrame":
    """Rows (image_id, label, x_min, y_min, x_max, y_max) as a table with the right types, empty or not."""
    import pandas as pd

    table = pd.DataFrame(rows, columns=list(TRUTH_COLUMNS))
    table[list(TRUTH_COLUMNS[2:])] = table[list(TRUTH_COLUMNS[2:])].astype("float64")
    return table.astype({"image_id": object, "label": "int64"})


def fingerprint(texts: list[bytes], images: "pd.DataFrame") -> str:
    """SHA-256 over the label files' bytes and the images' names and sizes."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(hashlib.sha256(text).digest())
    listing = sorted(zip(images["name"], images["size"], strict=True))
    digest.update("\n".join(f"{name} {size}" for name, size in listing).encode())
    return digest.hexdigest()


def decode_text(data: bytes, *, file: str) -> str:
    """UTF-8 text, with or without a byte order mark; raises InputError that names the line."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(f"{file}:{line}: not UTF-8 text (byte {data[error.start]:#04x}); save it as UTF-8") from None
