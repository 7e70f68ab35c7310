"""Several radiologists' boxes of one image become one set, and each box keeps who drew it."""

from typing import TYPE_CHECKING, Literal, assert_never

import numpy as np
from numpy.typing import NDArray

from vbd.boxes import Boxes, has_area

if TYPE_CHECKING:
    import pandas as pd

FusionMethod = Literal["wbf", "union"]
COORDINATES = ("x_min", "y_min", "x_max", "y_max")
# Columns of a table of fused boxes, in ORIGINAL pixels.
FUSED_COLUMNS = ("image_id", "label", *COORDINATES, "readers", "rad_ids")


def fuse_readers(
    readings: "pd.DataFrame", *, method: FusionMethod = "wbf", iou_threshold: float = 0.4
) -> "pd.DataFrame":
    """Readings of any number of images (records.READING_COLUMNS) to one row per lesion (FUSED_COLUMNS).

    `wbf` is weighted box fusion (Solovyev et al. 2021) with equal scores: boxes of one image and class whose IoU is
    above `iou_threshold` become their mean. `union` keeps every box as it was drawn. `readers` counts the distinct
    readers of a box and `rad_ids` is the sorted tuple of their names. Readings without an area are left out. The order
    of the rows in `readings` does not matter; the result is sorted by image_id, label and coordinates.
    """
    from vbd.fusing import weighted_box_fusion

    corners = readings[list(COORDINATES)].to_numpy(np.float64)
    drawn = readings[has_area(corners)]
    corners = drawn[list(COORDINATES)].to_numpy(np.float64)
    labels = drawn["label"].to_numpy(np.int64)
    images, image_ids = _codes(drawn["image_id"])
    readers, names = _codes(drawn["rad_id"])
    match method:
        case "wbf":
            fused = weighted_box_fusion(
                corners,
                np.ones(len(drawn)),
                labels,
                readers,
                weights=np.ones(max(1, len(names))),
                iou_threshold=iou_threshold,
                images=images,
            )
            lesion_of = fused.members
            columns = _lesion_columns(image_ids[fused.images], fused.labels, fused.boxes)
        case "union":
            lesion_of = np.arange(len(drawn))
            columns = _lesion_columns(image_ids[images], labels, corners.astype(np.float32))
        case _:
            assert_never(method)
    return _sorted_table(columns | _reader_columns(lesion_of, readers, names, count=len(columns["label"])))


def _lesion_columns(image_ids: NDArray[np.object_], labels: NDArray[np.int64], boxes_xyxy: Boxes) -> dict[str, NDArray]:
    corners = {name: boxes_xyxy[:, column] for column, name in enumerate(COORDINATES)}
    return {"image_id": image_ids, "label": labels, **corners}


def _reader_columns(
    lesion_of: NDArray[np.int64], readers: NDArray[np.int64], names: NDArray[np.object_], *, count: int
) -> dict[str, NDArray]:
    """Who drew each of `count` lesions, from each reading's lesion and reader: (n,), (n,) -> (count,) twice."""
    # Distinct (lesion, reader) pairs, by lesion and then by name, since `names` is sorted.
    pairs = np.unique(np.stack([lesion_of, readers], axis=1), axis=0)
    counts = np.bincount(pairs[:, 0], minlength=count).astype(np.int64)
    stops = np.cumsum(counts)
    rad_ids = np.empty(count, object)
    for lesion, (start, stop) in enumerate(zip(stops - counts, stops, strict=True)):
        rad_ids[lesion] = tuple(names[pairs[start:stop, 1]])
    return {"readers": counts, "rad_ids": rad_ids}


def _sorted_table(columns: dict[str, NDArray]) -> "pd.DataFrame":
    import pandas as pd

    table = pd.DataFrame(columns, columns=list(FUSED_COLUMNS))
    # `rad_ids` settles equal boxes, which only `union` keeps apart.
    return table.sort_values([*FUSED_COLUMNS[:6], "rad_ids"], ignore_index=True)


def _codes(column: "pd.Series") -> tuple[NDArray[np.int64], NDArray[np.object_]]:
    """Each value's index among the sorted distinct values, and those values: (n,), (m,)."""
    values, codes = np.unique(column.to_numpy(str), return_inverse=True)
    return codes.astype(np.int64), values.astype(object)
