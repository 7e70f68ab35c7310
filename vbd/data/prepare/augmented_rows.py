"""The rows that describe the pictures of an augmented dataset, as COCO JSON and as a contact sheet."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np

from vbd import storage
from vbd.boxes import as_boxes
from vbd.config import Copies, Policy, Seed
from vbd.config.checked import Count, Number, SafeName, between
from vbd.data.coco import LabelledImage, to_coco
from vbd.data.images.prepare import decode_image
from vbd.data.prepared import PreparedDataset
from vbd.drawing import LAYER_COLOURS, Layer, contact_sheet, draw, png
from vbd.labels import NUM_FINDINGS, name_of

# Contact sheet: how many images, and how large each picture is.
_SHEET_IMAGES, _SHEET_SIDE = 4, 320


@dataclass(frozen=True)
class PlanFile:
    """What `augmentation.json` holds."""

    policy: Policy
    copies: Copies | None
    seed: Seed
    version: int
    dataset: str


@dataclass(frozen=True)
class _Picture:
    """What a part holds of a picture."""

    file_name: SafeName
    source: SafeName
    transform: str
    copy: Count
    seed: int
    partners: tuple[SafeName, ...]
    fold: Annotated[int, between(0, 99)]
    boxes_in: Count
    boxes_out: Count
    boxes: tuple[tuple[Number, Number, Number, Number], ...]
    labels: tuple[Annotated[int, between(0, NUM_FINDINGS - 1)], ...]
    readers: tuple[Count, ...]


@dataclass(frozen=True)
class PartFile:
    """What `parts/part-*.json` holds."""

    key: str
    rows: tuple[_Picture, ...]
    sizes: dict[SafeName, Count]


def document(rows: Sequence[dict[str, Any]], dataset: PreparedDataset) -> dict[str, Any]:
    """COCO of the pictures, each with its source and transform."""
    size = dataset.options.image_size
    by_stem = {row["file_name"].rsplit(".", 1)[0]: row for row in rows}
    pictures = [_labelled(stem, row, size) for stem, row in by_stem.items()]
    suffix = "." + rows[0]["file_name"].rsplit(".", 1)[1]
    coco = to_coco(pictures, image_size=size, synthetic=dataset.synthetic, suffix=suffix)
    for entry in coco["images"]:
        row = by_stem[entry["image_id"]]
        entry |= {"source": row["source"], "transform": row["transform"]}
    return coco


def _labelled(stem: str, row: dict[str, Any], size: int) -> LabelledImage:
    boxes = as_boxes(row["boxes"])
    return LabelledImage(
        image_id=stem,
        fold=row["fold"],
        original_hw=(size, size),
        boxes=boxes,
        boxes_original=boxes,
        labels=np.asarray(row["labels"], np.int64),
        readers=np.asarray(row["readers"], np.int64),
        rad_ids=[()] * len(boxes),
    )


def draw_contact_sheet(rows: Sequence[dict[str, Any]], output: str, *, synthetic: bool) -> bytes:
    """The ground truth drawn on every picture of a few images, one line for each image."""
    by_source: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_source.setdefault(row["source"], []).append(row)
    # Images with as many kinds of pictures and as many classes as there are.
    order = sorted(by_source, key=lambda i: (-len(by_source[i]), -len(set(by_source[i][0]["labels"])), i))
    columns = len(by_source[order[0]])
    chosen = [source for source in order if len(by_source[source]) == columns][:_SHEET_IMAGES]
    pictures, captions = [], []
    for source in chosen:
        for row in by_source[source]:
            image = decode_image(storage.read_bytes(storage.join(output, "images", row["file_name"])))
            texts = [name_of(label) for label in row["labels"]]
            layer = Layer(as_boxes(row["boxes"]), texts, LAYER_COLOURS[1], row["transform"])
            grey = image if image.ndim == 2 else image[..., 0]
            pictures.append(draw(grey, [layer], zoom=_SHEET_SIDE / len(image)))
            captions.append(f"{'SYNTHETIC  ' if synthetic else ''}{row['transform']}  {source[:12]}")
    return png(contact_sheet(pictures, captions, columns))
