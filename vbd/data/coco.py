"""Labels as COCO JSON that pycocotools loads, with the project's own extra keys, and back."""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from vbd import storage
from vbd.boxes import EMPTY, Boxes, areas, as_boxes, xyxy_to_xywh
from vbd.config import checked
from vbd.config.checked import Count, Number, SafeName, Size, between
from vbd.errors import InputError
from vbd.labels import CLASS_NAMES, NUM_FINDINGS
from vbd.records import Truth

# Decimals of a coordinate in JSON: a thousandth of a pixel.
_DECIMALS = 3


@dataclass(frozen=True)
class LabelledImage:
    """One prepared image's labels, in pixels of the prepared and of the original image; box i is the same in both."""

    image_id: str
    fold: int  # -1 for the test part
    original_hw: tuple[int, int]
    boxes: Boxes = field(default_factory=lambda: EMPTY)  # (n, 4) in pixels of the prepared image
    boxes_original: Boxes = field(default_factory=lambda: EMPTY)  # (n, 4)
    labels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))  # (n,) in 0..13
    readers: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))  # (n,)
    rad_ids: Sequence[Sequence[str]] = ()  # (n,) the names of the readers of each box

    def __post_init__(self) -> None:
        lengths = [len(part) for part in (self.boxes, self.boxes_original, self.labels, self.readers, self.rad_ids)]
        if len(set(lengths)) > 1:
            raise ValueError(f"labels of {self.image_id}: boxes, boxes_original, labels, readers, rad_ids: {lengths}")


def to_coco(
    images: Sequence[LabelledImage], *, image_size: int, synthetic: bool, has_truth: bool = True, suffix: str = ".png"
) -> dict[str, Any]:
    """A COCO document of square prepared images; `category_id` is label + 1 and `file_name` is relative to `images/`.

    Ids count from 1 in the order of the sorted image ids, so that the order of `images` does not matter. With
    `has_truth` False there is no list of annotations at all: an image without a box would mean a normal one.
    """
    ordered = sorted(images, key=lambda image: image.image_id)
    document: dict[str, Any] = {
        "info": {"description": "vbd prepared dataset", "version": "1", "synthetic": synthetic},
        "licenses": [],
        "categories": [
            {"id": label + 1, "name": name, "supercategory": "finding"} for label, name in enumerate(CLASS_NAMES)
        ],
        "images": [_image_entry(number, image, image_size, suffix) for number, image in enumerate(ordered, start=1)],
    }
    if has_truth:
        annotations = [
            entry for number, image in enumerate(ordered, start=1) for entry in _annotation_entries(number, image)
        ]
        document["annotations"] = [{"id": number} | entry for number, entry in enumerate(annotations, start=1)]
    return document


@dataclass(frozen=True)
class _Image:
    id: Count
    image_id: SafeName
    fold: Annotated[int, between(-1, 99)]
    original_width: Size
    original_height: Size


@dataclass(frozen=True)
class _Annotation:
    image_id: Count
    category_id: Annotated[int, between(1, NUM_FINDINGS)]
    bbox_original: tuple[Number, Number, Number, Number]
    readers: Count


@dataclass(frozen=True)
class _Document:
    images: tuple[_Image, ...]
    annotations: tuple[_Annotation, ...] = ()


def read_coco(location: str) -> dict[str, Any]:
    """A document by `to_coco` from its file; raises InputError that names the place of a wrong value."""
    data = storage.read_bytes(location)
    checked.parse(data, _Document, where=location, again="prepare the dataset again")
    document: dict[str, Any] = json.loads(data)
    return document


def select_folds(document: dict[str, Any], folds: Collection[int]) -> dict[str, Any]:
    """The part of a COCO document that lies in some folds; images and annotations keep their ids."""
    images = [image for image in document["images"] if image["fold"] in folds]
    numbers = {image["id"] for image in images}
    part = document | {"images": images}
    if "annotations" in document:
        part["annotations"] = [entry for entry in document["annotations"] if entry["image_id"] in numbers]
    return part


def from_coco(document: dict[str, Any], *, where: str = "COCO document") -> list[Truth]:
    """The truth in ORIGINAL pixels of each image of a document by `to_coco`, in the document's order.

    Raises InputError, naming `where`, when the document was not written with its truth or by another program.
    """
    if "annotations" not in document:
        raise InputError(f"{where}: holds no annotations, so its truth is unknown; choose another part")
    entries_of: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in document["images"]}
    try:
        for entry in document["annotations"]:
            entries_of[entry["image_id"]].append(entry)
        return [_truth(image, entries_of[image["id"]]) for image in document["images"]]
    except KeyError as error:
        raise InputError(f"{where}: no {error.args[0]!r} in an entry; want a file written by jobs/prepare.py") from None


def _truth(image: dict[str, Any], entries: list[dict[str, Any]]) -> Truth:
    return Truth(
        image_id=image["image_id"],
        boxes=as_boxes([entry["bbox_original"] for entry in entries]),
        labels=np.array([entry["category_id"] - 1 for entry in entries], np.int64),
        readers=np.array([entry["readers"] for entry in entries], np.int64),
        original_hw=(int(image["original_height"]), int(image["original_width"])),
    )


def _image_entry(number: int, image: LabelledImage, image_size: int, suffix: str) -> dict[str, Any]:
    height, width = image.original_hw
    return {
        "id": number,
        "file_name": f"{image.image_id}{suffix}",
        "width": image_size,
        "height": image_size,
        "image_id": image.image_id,
        "original_width": int(width),
        "original_height": int(height),
        "fold": int(image.fold),
    }


def _annotation_entries(number: int, image: LabelledImage) -> list[dict[str, Any]]:
    boxes = np.asarray(image.boxes, np.float64)
    columns = zip(
        _rounded(xyxy_to_xywh(boxes)),
        _rounded(areas(boxes)),
        _rounded(image.boxes_original),
        image.labels,
        image.readers,
        image.rad_ids,
        strict=True,
    )
    return [
        {
            "image_id": number,
            "category_id": int(label) + 1,
            "bbox": bbox,
            "area": area,
            "iscrowd": 0,
            "bbox_original": bbox_original,
            "readers": int(readers),
            "rad_ids": [str(name) for name in rad_ids],
        }
        for bbox, area, bbox_original, label, readers, rad_ids in columns
    ]


def _rounded(values: NDArray) -> list[Any]:
    return np.round(np.asarray(values, np.float64), _DECIMALS).tolist()
