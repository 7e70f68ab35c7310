"""Several radiologists' boxes of one image become one set, and each box keeps who drew it."""

import functools
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, assert_never

import numpy as np
from numpy.typing import NDArray

from vbd.boxes import has_area
from vbd.caches import compiled
from vbd.config import ReaderFusion
from vbd.errors import InputError
from vbd.fusion.other_rules import mean_of_linked, non_maximum_weighted, suppression
from vbd.fusion.wbf import Fused, group_starts, weighted_box_fusion
from vbd.labels import NUM_FINDINGS

if TYPE_CHECKING:
    import pandas as pd

COORDINATES = ("x_min", "y_min", "x_max", "y_max")
# Columns of a table of fused boxes, in ORIGINAL pixels.
FUSED_COLUMNS = ("image_id", "label", *COORDINATES, "readers", "rad_ids")


def fuse_readers(
    readings: "pd.DataFrame",
    *,
    method: ReaderFusion = "wbf",
    iou_threshold: float = 0.4,
    min_readers: int = 1,
    readers: Collection[str] = (),
    without_readers: Collection[str] = (),
    known_readers: Collection[str] = (),
) -> "pd.DataFrame":
    """Readings of any number of images (records.READING_COLUMNS) to one row per lesion (FUSED_COLUMNS).

    Boxes of one image and class are fused, "overlap" being an IoU above `iou_threshold`:

    - `wbf`: weighted box fusion (Solovyev et al. 2021) with equal scores. Boxes are taken from left to right, and each
      joins the running mean that it overlaps most.
    - `nms`: the box that the other readers agree with most stays as it was drawn, and takes in those it overlaps. The
      agreement is 1 + the sum over the other readers of the IoU of their best overlapping box.
    - `nmw`: non-maximum weighted (Zhou et al. 2017): as `nms`, but the lesion is the mean of its boxes, weighted by
      agreement x IoU with the best one.
    - `mean`: all boxes linked by overlaps, be it through others, become their plain mean. A chain of boxes, whose
      ends may lie apart, is one lesion here, and mostly several in `wbf`.
    - `union`: every box as it was drawn, by one reader.

    `readers` counts the distinct readers of a lesion and `rad_ids` is the sorted tuple of their names. Lesions of fewer
    than `min_readers` are left out; from a union, boxes that fewer readers support, the one who drew it and those with a
    box that overlaps it. Every reading is in exactly one lesion, but those without an area are in none. Neither the order
    of the rows nor the readers' names matter to the boxes, ties are settled by coordinates; the result is sorted by
    image_id, label and coordinates.

    Only `readers` (empty: all) are heard, and not `without_readers`. Raises InputError for a name that neither drew a box
    in `readings` nor is among `known_readers`. Who READ an image is not told here: one that none of the chosen readers
    read has no rows, as a normal one has, and the caller must tell them apart.
    """
    chosen = _chosen(readings, readers, without_readers, known_readers)
    corners = chosen[list(COORDINATES)].to_numpy(np.float64)
    usable = has_area(corners)
    chosen, corners = chosen[usable], corners[usable]
    labels = chosen["label"].to_numpy(np.int64)
    images, image_ids = _codes(chosen["image_id"])
    who, names = _codes(chosen["rad_id"])
    order = np.lexsort((labels, images))
    corners, labels, images, who = corners[order], labels[order], images[order], who[order]
    agreement, supporters = _kernel()(corners, who, group_starts(images, labels), iou_threshold, len(names))
    fused = _fused(corners, labels, images, agreement, method=method, iou_threshold=iou_threshold)
    counts, rad_ids = _who_drew(fused.members, who, names, count=len(fused.boxes))
    kept = (supporters if method == "union" else counts) >= min_readers
    columns: dict[str, NDArray] = {name: fused.boxes[:, column] for column, name in enumerate(COORDINATES)}
    columns |= {"image_id": image_ids[fused.images], "label": fused.labels, "readers": counts, "rad_ids": rad_ids}
    return _sorted_table({name: column[kept] for name, column in columns.items()})


def _chosen(
    readings: "pd.DataFrame", readers: Collection[str], without_readers: Collection[str], known_readers: Collection[str]
) -> "pd.DataFrame":
    """The readings of the readers who are heard."""
    if not readers and not without_readers:
        return readings
    drew = set(readings["rad_id"])
    known = sorted(drew | set(known_readers))
    for name in (*readers, *without_readers):
        if name not in known:
            raise InputError(f"reader {name!r}: no such reader; choose among {', '.join(known) or 'none'}")
    return readings[readings["rad_id"].isin(set(readers or known) - set(without_readers))]


def _fused(
    boxes: NDArray,
    labels: NDArray[np.int64],
    images: NDArray[np.int64],
    agreement: NDArray,
    *,
    method: ReaderFusion,
    iou_threshold: float,
) -> Fused:
    """Boxes (n, 4) in canonical order, labels, images and agreement (n,) to lesions."""
    # Who drew a box must not settle a tie: to the kernels all boxes are one model's.
    one: dict[str, Any] = {"models": np.zeros(len(boxes), np.int64), "weights": np.ones(1), "images": images}
    thresholds = np.full(NUM_FINDINGS, iou_threshold)
    match method:
        case "wbf":
            return weighted_box_fusion(boxes, np.ones(len(boxes)), labels, iou_threshold=iou_threshold, **one)
        case "nmw":
            return non_maximum_weighted(boxes, agreement, labels, iou_threshold=thresholds, skip_threshold=0, **one)
        case "nms":
            return suppression(boxes, agreement, labels, iou_threshold=thresholds, skip_threshold=0, **one)
        case "mean":
            return mean_of_linked(boxes, labels, images, iou_threshold=iou_threshold)
        case "union":
            return Fused(boxes.astype(np.float32), agreement, labels, images, members=np.arange(len(boxes)))
        case _:
            assert_never(method)


def _who_drew(
    lesion_of: NDArray[np.int64], readers: NDArray[np.int64], names: NDArray[np.object_], *, count: int
) -> tuple[NDArray[np.int64], NDArray[np.object_]]:
    """How many readers drew each of `count` lesions, and their names: (n,), (n,) -> (count,), (count,)."""
    # Distinct (lesion, reader) pairs, by lesion and then by name, since `names` is sorted.
    pairs = np.unique(lesion_of * max(1, len(names)) + readers)
    lesions, drew = np.divmod(pairs, max(1, len(names)))
    counts = np.bincount(lesions, minlength=count).astype(np.int64)
    stops = np.cumsum(counts)
    rad_ids = np.empty(count, object)
    for lesion, (start, stop) in enumerate(zip(stops - counts, stops, strict=True)):
        rad_ids[lesion] = tuple(names[drew[start:stop]])
    return counts, rad_ids


def _sorted_table(columns: dict[str, NDArray]) -> "pd.DataFrame":
    import pandas as pd

    # pandas tells the type of strings by their values, of which an empty table has none.
    table = pd.DataFrame(columns, columns=list(FUSED_COLUMNS)).astype({"image_id": str})
    # `rad_ids` settles equal boxes, which only `union` keeps apart.
    return table.sort_values([*FUSED_COLUMNS[:6], "rad_ids"], ignore_index=True)


def _codes(column: "pd.Series") -> tuple[NDArray[np.int64], NDArray[np.object_]]:
    """Each value's index among the sorted distinct values, and those values: (n,), (m,)."""
    values, codes = np.unique(column.to_numpy(str), return_inverse=True)
    return codes.astype(np.int64), values.astype(object)


@functools.cache
def _kernel() -> Callable:
    return compiled(_agreements, error_model="python")


def _agreements(
    boxes: NDArray, readers: NDArray, starts: NDArray, threshold: float, num_readers: int
) -> tuple[NDArray, NDArray]:
    """1 + the sum over other readers of their best IoU above the threshold, and how many those and oneself are: (n,).

    Of boxes (n, 4) and readers (n,) in 0..num_readers-1, in groups that begin at `starts`; compiled.
    """
    agreement, supporters = np.ones(len(boxes)), np.ones(len(boxes), np.int64)
    # As whole numbers, whose sum does not depend on the order of the readers' names.
    unit = 2.0**40
    best = np.empty(num_readers, np.int64)
    for g in range(len(starts) - 1):
        for row in range(starts[g], starts[g + 1]):
            best[:] = 0
            area = (boxes[row, 2] - boxes[row, 0]) * (boxes[row, 3] - boxes[row, 1])
            for other in range(starts[g], starts[g + 1]):
                width = min(boxes[row, 2], boxes[other, 2]) - max(boxes[row, 0], boxes[other, 0])
                height = min(boxes[row, 3], boxes[other, 3]) - max(boxes[row, 1], boxes[other, 1])
                if width <= 0 or height <= 0 or readers[other] == readers[row]:
                    continue
                other_area = (boxes[other, 2] - boxes[other, 0]) * (boxes[other, 3] - boxes[other, 1])
                iou = width * height / (area + other_area - width * height)
                if iou > threshold:
                    best[readers[other]] = max(best[readers[other]], int(iou * unit))
            total = 0
            for reader in range(num_readers):
                total += best[reader]
                supporters[row] += best[reader] > 0
            agreement[row] += total / unit
    return agreement, supporters
