"""COCO JSON: categories are matched by name, images by file name; a file called *test* describes the test part.

Boxes of crowds are boxes like others. Who drew a box (`rad_ids` of our own files) is not read: all boxes are a consensus.
"""

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vbd.data.rejects import Reject, reject
from vbd.data.sources.coco_files import Document, find_documents
from vbd.data.sources.tables import (
    ALL_REFUSED,
    CONTRADICTED,
    DUPLICATE,
    IN_BOTH_PARTS,
    PathIndex,
    Source,
    assemble,
    box_table,
    fingerprint,
    image_table,
    refuse_broken,
    stem_of,
)
from vbd.labels import NO_FINDING

_Box = tuple[Any, ...]  # a row of `box_table`
_Size = tuple[float, float]  # (height, width), NaN where it is not declared
_UNKNOWN_SIZE = (math.nan, math.nan)
_NO_BOX = (math.nan,) * 4


@dataclass(frozen=True)
class _Entry:
    """An image that a document lists, and its file."""

    image_id: str
    name: str  # of the file, relative to the folder
    split: str
    hw: _Size


def read_coco(folder: str) -> Source:
    """Reads a folder with COCO annotations, or one JSON file; see `sources.read_source`."""
    import pandas as pd

    found = find_documents(folder)
    listing = found.listing
    files, broken = refuse_broken(listing.images)
    usable, index = set(files["name"]), PathIndex(listing.images["name"])
    entries: dict[str, _Entry] = {}  # by image id
    rows: list[_Box] = []
    lost: set[str] = set()
    rejects = [*found.rejects, *broken]
    for document in found.documents:
        by_number, refused = _images(document, index, usable, entries)
        entries = {entry.image_id: entry for entry in by_number.values()} | entries
        boxes, refused_boxes, lost_here = _boxes(document, by_number)
        rows += boxes
        lost |= lost_here
        rejects += [*refused, *refused_boxes]
    lost -= {row[0] for row in rows}
    path_of = dict(zip(files["name"], files["path"], strict=True))
    rejects += [reject(path_of[entries[image_id].name], 0, ALL_REFUSED) for image_id in sorted(lost)]
    if not found.is_single:
        unlisted = sorted(usable - {entry.name for entry in entries.values()})
        rejects += [reject(path_of[name], 0, "listed in no COCO file") for name in unlisted]
    kept = {entry.name: entry for image_id, entry in entries.items() if image_id not in lost}
    images = files[files["name"].isin(kept)]
    splits = images["name"].map({name: entry.split for name, entry in kept.items()})
    sizes = {entry.image_id: entry.hw for entry in kept.values()}
    tables = [image_table(images[splits == split], split, sizes) for split in ("train", "test")]
    return assemble(
        "coco",
        pd.concat(tables),
        box_table(rows),
        has_truth=any(document.split == "test" and document.annotations for document in found.documents),
        rejects=rejects,
        synthetic=found.synthetic,
        fingerprint=fingerprint(found.texts, listing.images),
    )


def _images(
    document: Document, index: PathIndex, usable: set[str], taken: Mapping[str, _Entry]
) -> tuple[dict[Any, _Entry], list[Reject]]:
    """The entry of each of the document's image numbers; `taken` are those of earlier documents, by image id.

    An image that is listed again, under the same number or another, is the same image: its boxes come together.
    """
    rejects = []
    listed: list[tuple[int, Any, _Entry]] = []
    names_of = defaultdict(set)
    for row, image in enumerate(document.images, start=1):
        entry, reason = _entry(image, document, index, usable)
        if entry is None:
            rejects.append(reject(document.name, row, reason))
        else:
            listed.append((row, image["id"], entry))
            names_of[image["id"]].add(entry.name)
    by_number: dict[Any, _Entry] = {}
    by_id = dict(taken)
    for row, number, entry in listed:
        first = by_id.get(entry.image_id, entry)
        if len(names_of[number]) > 1:
            reason = f"image number {number!r} is used for several files"
        elif first.name != entry.name:
            reason = f"another file has the same image id: {first.name!r}"
        elif first.split != entry.split:
            reason = IN_BOTH_PARTS
        else:
            reason = f"image {entry.name!r} is listed twice" if entry.image_id in by_id else ""
            by_id[entry.image_id] = by_number[number] = first
        rejects += [reject(document.name, row, reason)] if reason else []
    return by_number, rejects


def _entry(image: Any, document: Document, index: PathIndex, usable: set[str]) -> tuple[_Entry | None, str]:
    """One of a document's images, or why it is refused."""
    if not isinstance(image, dict) or not isinstance(image.get("id"), int | str) or not image.get("file_name"):
        return None, "an image without 'id' or 'file_name'"
    written = str(image["file_name"])
    name = index.find(written)
    if name is None or name not in usable:
        return None, f"no usable image file {written!r}"
    sides = (image.get("height"), image.get("width"))
    if not all(sides):
        return _Entry(stem_of(name), name, document.split, _UNKNOWN_SIZE), ""
    hw = tuple(map(_number, sides))
    if not all(math.isfinite(side) and side >= 1 for side in hw):
        return None, f"height {sides[0]!r} and width {sides[1]!r} are not two positive numbers"
    return _Entry(stem_of(name), name, document.split, (hw[0], hw[1])), ""


def _number(value: Any) -> float:
    """A number, NaN for what is none."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _boxes(document: Document, entries: Mapping[Any, _Entry]) -> tuple[list[_Box], list[Reject], set[str]]:
    """The document's boxes, what was refused, and the images of which a finding was refused."""
    rows: dict[_Box, int] = {}  # in order; a dict for its quick `in`
    rejects: list[Reject] = []
    lost: set[str] = set()
    normal: list[tuple[int, str]] = []
    for row, annotation in enumerate(document.annotations, start=1):
        entry, label, reason = _who(annotation, document, entries)
        if entry is None:
            rejects.append(reject(document.name, row, reason))
            continue
        if label == NO_FINDING:
            normal.append((row, entry.image_id))
            continue
        corners, fault = _corners(annotation, entry.hw)
        box = (entry.image_id, label, *corners)
        if reason or fault:
            rejects.append(reject(document.name, row, reason or fault))
            lost.add(entry.image_id)
        elif box in rows:
            rejects.append(reject(document.name, row, DUPLICATE))
        else:
            rows[box] = row
    found = lost | {box[0] for box in rows}
    rejects += [reject(document.name, row, CONTRADICTED) for row, image_id in normal if image_id in found]
    return list(rows), sorted(rejects, key=lambda reject: reject["row"]), lost


def _who(annotation: Any, document: Document, entries: Mapping[Any, _Entry]) -> tuple[_Entry | None, int | None, str]:
    """The image and the label of an annotation, and why it is refused when one of them is not known."""
    if not isinstance(annotation, dict):
        return None, None, "an annotation that is no object"
    number, category = (annotation.get(key) for key in ("image_id", "category_id"))
    entry = entries.get(number) if isinstance(number, int | str) else None
    if entry is None:
        return None, None, f"annotation of an unknown or refused image {number!r}"
    name, label = document.categories.get(category, ("", None)) if isinstance(category, int | str) else ("", None)
    return entry, label, "" if label is not None else f"unknown category {name or category!r}"


def _corners(annotation: Mapping[str, Any], hw: _Size) -> tuple[tuple[float, ...], str]:
    """Corners of an annotation's box, else of the box around its polygons, and why they are refused ("" if not)."""
    bbox, polygons = annotation.get("bbox"), annotation.get("segmentation")
    if bbox:
        told, corners = f"bbox {str(bbox)[:80]!r}", _bbox_corners(bbox)
    elif isinstance(polygons, list) and polygons:
        told, corners = f"segmentation {str(polygons)[:80]!r}", _polygon_corners(polygons)
    else:
        return (), "no bbox, and no polygon to take one from"
    if not all(map(math.isfinite, corners)):
        return (), f"{told} holds no box of finite numbers"
    x_min, y_min, x_max, y_max = corners
    if x_min >= x_max or y_min >= y_max:
        return (), f"{told} has no area"
    height, width = hw
    if x_max <= 0 or y_max <= 0 or x_min >= width or y_min >= height:
        return (), f"{told} lies outside the image"
    return corners, ""


def _bbox_corners(bbox: Any) -> tuple[float, ...]:
    """xyxy of COCO's xywh; NaN when it is none."""
    if not isinstance(bbox, list) or len(bbox) != 4:
        return _NO_BOX
    x, y, width, height = map(_number, bbox)
    return x, y, x + width, y + height


def _polygon_corners(polygons: list[Any]) -> tuple[float, ...]:
    """xyxy of the box around all polygons, each a list x1, y1, x2, y2, ...; NaN when one is none."""
    if not all(isinstance(polygon, list) and len(polygon) % 2 == 0 for polygon in polygons):
        return _NO_BOX
    points = [(_number(x), _number(y)) for p in polygons for x, y in zip(p[::2], p[1::2], strict=True)]
    if not points or not all(math.isfinite(value) for point in points for value in point):
        return _NO_BOX
    xs, ys = zip(*points, strict=True)
    return min(xs), min(ys), max(xs), max(ys)
