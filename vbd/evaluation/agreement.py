"""The readers against each other: what a radiologist scores on the others' boxes, the human reference for a model."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vbd.evaluation.average_precision import FlatBoxes, match_flat
from vbd.fusing import weighted_box_fusion
from vbd.labels import CLASS_NAMES, NUM_FINDINGS

if TYPE_CHECKING:
    import pandas as pd

_BOX = ["x_min", "y_min", "x_max", "y_max"]
ALL_CLASSES = "all"


def leave_one_reader_out(
    readings: "pd.DataFrame", readers: "pd.DataFrame", *, iou_threshold: float = 0.4, fusion_iou: float = 0.4
) -> "pd.DataFrame":
    """Each reader's boxes against the fused boxes of all other readers of the same images.

    readings: columns of `records.READING_COLUMNS`; readers: `image_id, rad_id`, one row for each image a reader read.
    Boxes of the others are fused at `fusion_iou`; a box agrees when its IoU with one of them reaches `iou_threshold`.
    Returns rows `rad_id, class_name` (and `all`), `images, boxes, reference_boxes, agreed, precision, recall`; NaN
    where there is nothing to divide by. Images that a reader read alone are left out.
    """
    looks, own = _looks(readings, readers)
    others = own.merge(looks, on="image_id", suffixes=("_drawn", ""))
    others = others[others["rad_id_drawn"] != others["rad_id"]]
    fused = weighted_box_fusion(
        others[_BOX].to_numpy(),
        np.ones(len(others)),
        others["label"].to_numpy(),
        np.zeros(len(others), np.int64),
        weights=[1.0],
        iou_threshold=fusion_iou,
        images=others["look"].to_numpy(),
    )
    reference = _flat_boxes(fused.images, fused.labels, fused.boxes)
    is_shared = looks.groupby("image_id")["rad_id"].transform("size") > 1
    own = own[own["look"].isin(looks.loc[is_shared, "look"])]
    return _table(own, reference, looks[is_shared], ["rad_id"], iou_threshold)


def reader_pairs(readings: "pd.DataFrame", readers: "pd.DataFrame", *, iou_threshold: float = 0.4) -> "pd.DataFrame":
    """Each reader's boxes against each other reader's, on the images that both read.

    Arguments and columns as in `leave_one_reader_out`, with the other reader's `other_rad_id` beside `rad_id`.
    """
    looks, own = _looks(readings, readers)
    pairs = looks.merge(looks[["image_id", "rad_id"]].rename(columns={"rad_id": "other_rad_id"}), on="image_id")
    pairs = pairs[pairs["rad_id"] != pairs["other_rad_id"]].drop(columns="look")
    pairs["look"] = np.arange(len(pairs))
    drawn = own.drop(columns="look")
    first = drawn.merge(pairs, on=["image_id", "rad_id"])
    second = drawn.rename(columns={"rad_id": "other_rad_id"}).merge(pairs, on=["image_id", "other_rad_id"])
    reference = _flat_boxes(second["look"].to_numpy(), second["label"].to_numpy(), second[_BOX].to_numpy())
    return _table(first, reference, pairs, ["rad_id", "other_rad_id"], iou_threshold)


def _looks(readings: "pd.DataFrame", readers: "pd.DataFrame") -> "tuple[pd.DataFrame, pd.DataFrame]":
    """Every reader's look at an image, numbered, and the boxes with their look; both in an order of their own."""
    looks = readers[["image_id", "rad_id"]].drop_duplicates().sort_values(["image_id", "rad_id"], ignore_index=True)
    looks["look"] = np.arange(len(looks))
    own = readings[["image_id", "rad_id", "label", *_BOX]].merge(looks, on=["image_id", "rad_id"])
    return looks, own.sort_values(["look", "label", *_BOX], ignore_index=True)


def _flat_boxes(images: NDArray, labels: NDArray, boxes: NDArray) -> FlatBoxes:
    n = len(images)
    return FlatBoxes(
        images=np.asarray(images, np.int64),
        labels=np.asarray(labels, np.int64),
        boxes=np.asarray(boxes, np.float64).reshape(-1, 4),
        scores=np.ones(n),
    )


def _table(
    own: "pd.DataFrame", reference: FlatBoxes, looks: "pd.DataFrame", keys: list[str], iou_threshold: float
) -> "pd.DataFrame":
    """Counts by the looks' `keys` and class, with precision and recall."""
    import pandas as pd  # 0.5 s: kept out of --help

    found = _flat_boxes(own["look"].to_numpy(), own["label"].to_numpy(), own[_BOX].to_numpy())
    num_looks = int(looks["look"].max()) + 1 if len(looks) else 0
    # Without scores no box comes first: each takes the best reference box that is still free.
    matches = match_flat(found, reference, num_looks, iou_threshold=iou_threshold, coco=True)
    agreed = np.zeros(len(own), bool)
    agreed[matches.rows] = matches.is_true_positive
    number = looks.groupby(keys).ngroup()
    groups = looks.groupby(keys)["image_id"].nunique().reset_index(name="images")
    group_of_look = np.full(num_looks, -1, np.int64)
    group_of_look[looks["look"].to_numpy()] = number.to_numpy()
    counts = {
        "boxes": _count(group_of_look[found.images], found.labels, len(groups)),
        "reference_boxes": _count(group_of_look[reference.images], reference.labels, len(groups)),
        "agreed": _count(group_of_look[found.images[agreed]], found.labels[agreed], len(groups)),
    }
    names = [*CLASS_NAMES, ALL_CLASSES]
    table = groups.loc[groups.index.repeat(len(names))].reset_index(drop=True)
    table.insert(len(keys), "class_name", names * len(groups))
    for name, values in counts.items():
        table[name] = values.ravel()
    nan = pd.Series(np.nan, index=table.index)
    table["precision"] = (table["agreed"] / table["boxes"]).where(table["boxes"] > 0, nan)
    table["recall"] = (table["agreed"] / table["reference_boxes"]).where(table["reference_boxes"] > 0, nan)
    return table


def _count(groups: NDArray, labels: NDArray, num_groups: int) -> NDArray[np.int64]:
    """Boxes by group and class, and over all classes: (n,), (n,) -> (groups, 15). Group -1 is not counted."""
    known = groups >= 0
    flat = np.bincount(groups[known] * NUM_FINDINGS + labels[known], minlength=num_groups * NUM_FINDINGS)
    counts = flat.reshape(num_groups, NUM_FINDINGS)
    return np.concatenate([counts, counts.sum(1, keepdims=True)], axis=1)
