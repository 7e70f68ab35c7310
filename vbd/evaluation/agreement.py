"""The readers against each other: what a radiologist scores on the others' boxes, the human reference for a model.

Rajpurkar et al., "CheXNet: Radiologist-level pneumonia detection on chest X-rays with deep learning", 2017, score each
radiologist and the model alike on what the other radiologists of an image said; here the others' boxes are fused first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vbd.evaluation.froc import RATES, Froc, froc_of
from vbd.evaluation.matching import FlatBoxes, flatten, match_flat
from vbd.fusion.wbf import weighted_box_fusion
from vbd.labels import CLASS_NAMES, NUM_FINDINGS
from vbd.records import Detections, Truth

if TYPE_CHECKING:
    import pandas as pd

_BOX = ["x_min", "y_min", "x_max", "y_max"]
ALL_CLASSES = "all"
ALL_READERS = "all"


@dataclass(frozen=True)
class ReaderPoint:
    """Where readers stand on a FROC plot and on a precision-recall plot; NaN where there is nothing to divide by.

    A reader gives no scores, so this is one point and neither a curve nor an average precision.
    """

    rad_id: str  # or `all`
    images: int  # read by this reader and by another; of all readers, each reader's look at an image counts
    boxes: int  # drawn
    reference_boxes: int  # of the other readers, fused
    agreed: int  # boxes that one of those confirms
    sensitivity: float  # agreed of reference_boxes: the recall
    precision: float  # agreed of boxes
    false_positives_per_image: float


@dataclass(frozen=True)
class HumanReference:
    """What the readers score on each other's boxes, leaving one reader out at a time."""

    readers: tuple[ReaderPoint, ...]  # by rad_id, all findings together
    pooled: ReaderPoint  # all readers' looks together
    per_class: dict[str, ReaderPoint]  # pooled, of each finding
    iou_threshold: float


def human_reference(
    readings: "pd.DataFrame", readers: "pd.DataFrame", *, iou_threshold: float = 0.4, fusion_iou: float = 0.4
) -> HumanReference:
    """Operating points of the readers, each against the fused boxes of the other readers; see `leave_one_reader_out`.

    A model's curve on the fused boxes of ALL readers is not on the same scale: it may be compared where it is held
    against what a reader is held against, which `froc_against_readers` does.
    """
    table = leave_one_reader_out(readings, readers, iou_threshold=iou_threshold, fusion_iou=fusion_iou)
    pooled = table.groupby("class_name")[["images", "boxes", "reference_boxes", "agreed"]].sum()
    pooled = pooled.reindex([*CLASS_NAMES, ALL_CLASSES], fill_value=0)
    overall = table[table["class_name"] == ALL_CLASSES]
    names, counts = overall["rad_id"].tolist(), overall[list(pooled.columns)].to_numpy(np.int64)
    of_class = {str(name): _point(ALL_READERS, row) for name, row in zip(pooled.index, pooled.to_numpy(), strict=True)}
    return HumanReference(
        readers=tuple(_point(name, row) for name, row in zip(names, counts, strict=True)),
        pooled=of_class[ALL_CLASSES],
        per_class={name: of_class[name] for name in CLASS_NAMES},
        iou_threshold=iou_threshold,
    )


def froc_against_readers(
    detections: Sequence[Detections],
    readings: "pd.DataFrame",
    readers: "pd.DataFrame",
    *,
    iou_threshold: float = 0.4,
    fusion_iou: float = 0.4,
    rates: Sequence[float] = RATES,
) -> Froc:
    """A model's FROC on the very references of `human_reference`, so that the readers' points lie on its plot.

    For each reader's look at an image the model's boxes are matched with the fused boxes of the other readers, by the
    same rule: with three readers of an image the model is held against three pairs of readers. The images are those
    of `readers` that more than one reader read: without detections they count as images on which nothing was found,
    and detections of other images are left out. Errors as in `average_precision.evaluate`.
    """
    looks, _, reference = _leave_one_out(readings, readers, fusion_iou)
    found, _ = flatten(detections, [Truth(each.image_id) for each in detections])
    place = {each.image_id: i for i, each in enumerate(detections)}
    of_look = looks["image_id"].map(place).fillna(-1).to_numpy(np.int64)
    # Rows of findings stand image by image.
    finding = found.labels < NUM_FINDINGS
    ends = np.concatenate([[0], np.cumsum(np.bincount(found.images[finding], minlength=len(detections)))])
    first, last = (np.where(of_look >= 0, ends[of_look + at], 0) for at in (0, 1))
    rows = np.repeat(first - np.cumsum(np.append(0, last - first))[:-1], last - first) + np.arange((last - first).sum())
    shown = np.repeat(np.arange(len(looks)), last - first)
    copied = FlatBoxes(shown, found.labels[rows], found.boxes[rows], found.scores[rows])
    number = np.full(int(looks["look"].max()) + 1 if len(looks) else 0, -1, np.int64)
    number[looks["look"].to_numpy()] = np.arange(len(looks))
    wanted = FlatBoxes(number[reference.images], reference.labels, reference.boxes, reference.scores)
    return froc_of(match_flat(copied, wanted, len(looks), iou_threshold=iou_threshold, coco=True), rates=rates)


def _point(rad_id: str, counts: NDArray) -> ReaderPoint:
    """From images, boxes, reference_boxes and agreed."""
    images, boxes, reference_boxes, agreed = (int(value) for value in counts)
    nan = float("nan")
    return ReaderPoint(
        rad_id=rad_id,
        images=images,
        boxes=boxes,
        reference_boxes=reference_boxes,
        agreed=agreed,
        sensitivity=agreed / reference_boxes if reference_boxes else nan,
        precision=agreed / boxes if boxes else nan,
        false_positives_per_image=(boxes - agreed) / images if images else nan,
    )


def leave_one_reader_out(
    readings: "pd.DataFrame", readers: "pd.DataFrame", *, iou_threshold: float = 0.4, fusion_iou: float = 0.4
) -> "pd.DataFrame":
    """Each reader's boxes against the fused boxes of all other readers of the same images.

    readings: columns of `records.READING_COLUMNS`; readers: `image_id, rad_id`, one row for each image a reader read.
    Boxes of the others are fused at `fusion_iou`; a box agrees when its IoU with one of them reaches `iou_threshold`.
    Returns rows `rad_id, class_name` (and `all`), `images, boxes, reference_boxes, agreed, precision, recall`; NaN
    where there is nothing to divide by. Images that a reader read alone are left out.
    """
    looks, own, reference = _leave_one_out(readings, readers, fusion_iou)
    return _table(own, reference, looks, ["rad_id"], iou_threshold)


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


def _leave_one_out(
    readings: "pd.DataFrame", readers: "pd.DataFrame", fusion_iou: float
) -> "tuple[pd.DataFrame, pd.DataFrame, FlatBoxes]":
    """Looks at images that others read too, the boxes drawn in them, and the others' fused boxes by look."""
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
    return looks[is_shared], own, reference


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
