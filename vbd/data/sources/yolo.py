"""YOLO text labels: one `<image>.txt` per image, lines `class cx cy w h` in parts of the image's sides.

Labels stand under `labels/` (mirroring `images/`, or flat), in a folder `labels` beside a folder `images`, or beside the
images. An image without a label file, or with an empty one, is normal. A sixth column, the confidence of predictions, is
ignored; a polygon (`class x1 y1 x2 y2 x3 y3 ...`) stands for the box around it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vbd import storage
from vbd.data.rejects import Reject, reject
from vbd.data.sources.tables import (
    ALL_REFUSED,
    CONTRADICTED,
    DUPLICATE,
    LIST_FILES,
    SYNTHETIC_MARK,
    Listing,
    Source,
    assemble,
    box_table,
    encoding_fault,
    fingerprint,
    image_table,
    list_folder,
    read_sizes,
    refuse_broken,
    refuse_repeated,
)
from vbd.data.sources.yolo_lists import Classes, assign_parts, read_setup
from vbd.errors import InputError
from vbd.labels import NO_FINDING

if TYPE_CHECKING:
    import pandas as pd

# How far a box may stick out of its image, in parts of the image's side: rounding, cut off later.
_OVERHANG = 0.01
# An image's size in pixels (height, width).
_Hw = tuple[int, int]


def read_yolo(folder: str) -> Source:
    """Reads a YOLO folder; see `sources.read_source`. Opens every image's header for its size."""
    import pandas as pd

    listing = list_folder(folder, recursive=True)
    if not len(listing.images):
        raise InputError(f"{folder}: no .png, .jpg or .dicom images in it or below it")
    setup = read_setup(folder, listing)
    images, broken = refuse_broken(listing.images)
    splits, unlisted = assign_parts(setup, folder, images["name"].tolist(), listing)
    images, repeated = refuse_repeated(images[images["name"].isin(splits)].reset_index(drop=True))
    hw, unreadable = _sizes(images)
    images = images[images["image_id"].isin(hw)]
    label_files, orphans = _match_labels(images, listing, setup.texts)
    texts = _read_texts(folder, label_files, listing)
    rows, refused, lost = _read_all(images, label_files, texts, hw, setup.classes)
    images = images[~images["image_id"].isin(lost)]
    parts = images["name"].map(splits)
    tables = [image_table(images[parts == split], split, hw) for split in ("train", "test")]
    return assemble(
        "yolo",
        pd.concat(tables),
        box_table(rows),
        has_truth=any(splits[name] == "test" for name in images.loc[images["image_id"].isin(label_files), "name"]),
        rejects=[*setup.rejects, *broken, *unlisted, *repeated, *unreadable, *orphans, *refused],
        synthetic=SYNTHETIC_MARK in listing.others,
        fingerprint=fingerprint({**setup.texts, **texts}, listing.images),
    )


def _sizes(images: "pd.DataFrame") -> tuple[dict[str, _Hw], list[Reject]]:
    paths = images["path"].tolist()
    found = list(zip(images["image_id"], paths, read_sizes(paths), strict=True))
    sizes = {image_id: hw for image_id, _, hw in found if hw is not None}
    reason = "not a readable image: its header tells no size"
    return sizes, [reject(path, 0, reason) for _, path, hw in found if hw is None]


def _match_labels(
    images: "pd.DataFrame", listing: Listing, setup_files: Mapping[str, bytes]
) -> tuple[dict[str, str], list[Reject]]:
    """The label file of each image that has one, and the label files that belong to no image."""
    texts = {
        name
        for name in listing.others
        if name.lower().endswith(".txt") and name not in setup_files and name not in LIST_FILES
    }
    matched = {}
    for image_id, name in zip(images["image_id"], images["name"], strict=True):
        label_file = next((file for file in _candidates(name) if file in texts), None)
        if label_file is not None:
            matched[image_id] = label_file
    used = set(matched.values())
    folders = {name.rpartition("/")[0] for name in used}
    return matched, [
        reject(name, 0, "no usable image file for these labels")
        for name in sorted(texts - used)
        if name.rpartition("/")[0] in folders or "labels" in name.split("/")[:-1]
    ]


def _candidates(image_name: str) -> list[str]:
    """Where the labels of an image may stand, best first."""
    steps = image_name.rsplit(".", 1)[0].split("/")
    mirrored = list(steps)
    if "images" in steps[:-1]:
        mirrored[len(steps) - 2 - steps[-2::-1].index("images")] = "labels"
    below = steps[1:] if steps[0] == "images" and len(steps) > 1 else steps
    places = (mirrored, ["labels", *below], ["labels", steps[-1]], steps)
    return [f"{'/'.join(place)}.txt" for place in places]


def _read_texts(folder: str, label_files: Mapping[str, str], listing: Listing) -> dict[str, bytes]:
    """The content of all label files, by name; empty ones are not opened."""
    filled = sorted(name for name in set(label_files.values()) if listing.others[name])
    texts = storage.read_many([storage.join(folder, name) for name in filled])
    return dict.fromkeys(label_files.values(), b"") | dict(zip(filled, texts, strict=True))


def _read_all(
    images: "pd.DataFrame",
    label_files: Mapping[str, str],
    texts: Mapping[str, bytes],
    hw: Mapping[str, _Hw],
    classes: Classes,
) -> tuple[list[tuple[Any, ...]], list[Reject], set[str]]:
    """Rows of `box_table` of all images, what was refused, and the images left without a finding only by that."""
    rows: list[tuple[Any, ...]] = []
    rejects: list[Reject] = []
    lost = set()
    for image_id, path in zip(images["image_id"], images["path"], strict=True):
        if image_id not in label_files:
            continue
        file = label_files[image_id]
        boxes, refused, is_lost = _read_labels(texts[file], file, hw[image_id], classes)
        rows += [(image_id, *box) for box in boxes]
        rejects += refused
        if is_lost:
            lost.add(image_id)
            rejects.append(reject(path, 0, ALL_REFUSED))
    return rows, rejects, lost


def _read_labels(data: bytes, file: str, hw: _Hw, classes: Classes) -> tuple[list[tuple[Any, ...]], list[Reject], bool]:
    """Rows (label, corners in pixels), what was refused, and whether that was all there was."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return [], [reject(file, *encoding_fault(data, error))], True
    height, width = hw
    boxes: dict[tuple[Any, ...], int] = {}  # in order; a dict for its quick `in`
    normal, faults, repeated = [], [], []
    for line, cells in enumerate(map(str.split, text.splitlines()), start=1):
        if not cells:
            continue
        reason, label, corners = _read_line(cells, classes)
        if reason:
            faults.append(reject(file, line, reason))
            continue
        if label == NO_FINDING:
            normal.append(line)
            continue
        box = (label, *(value * side for value, side in zip(corners, (width, height) * 2, strict=True)))
        if box in boxes:
            repeated.append(reject(file, line, DUPLICATE))
        boxes.setdefault(box, line)
    contradicted = [reject(file, line, CONTRADICTED) for line in normal if boxes or faults]
    rejects = sorted([*faults, *repeated, *contradicted], key=lambda row: row["row"])
    return list(boxes), rejects, bool(faults) and not boxes


def _read_line(cells: Sequence[str], classes: Classes) -> tuple[str, int, tuple[float, ...]]:
    """Why a line is refused ("" when it is not), its label, and its corners in parts of the image's sides."""
    try:
        number, *values = map(float, cells)
    except ValueError:
        return f"want numbers 'class cx cy w h', found {' '.join(cells)[:80]!r}", 0, ()
    name, label = classes.get(int(number) if number.is_integer() else -1, ("", None))
    if label is None:
        return f"unknown class {f'{cells[0]} {name}'.strip()!r}", 0, ()
    if label == NO_FINDING:
        return "", label, ()
    if len(values) >= 6 and len(values) % 2 == 0:
        corners = min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])
    elif len(values) in (4, 5):
        cx, cy, w, h = values[:4]
        corners = cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2
    else:
        return f"{len(cells)} columns; want 5, 6 with a confidence, or the corners of a polygon", 0, ()
    told = repr(" ".join(cells[1:])[:80])
    if not all(map(math.isfinite, values)):
        return f"{told} are not finite numbers", 0, ()
    if corners[0] >= corners[2] or corners[1] >= corners[3]:
        return f"box {told} has no area", 0, ()
    if min(corners) < -_OVERHANG or max(corners) > 1 + _OVERHANG:
        return f"box {told} sticks out of the image; want parts of its sides, 0..1", 0, ()
    return "", label, corners
