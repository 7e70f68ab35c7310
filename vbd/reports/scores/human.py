"""The readers of the same images beside a detector: both held against what the other readers of an image drew."""

import math
from dataclasses import dataclass

import numpy as np

from vbd import storage
from vbd.data.prepared import PreparedDataset, of_chosen_readers
from vbd.evaluation.agreement import HumanReference, froc_against_readers, human_reference
from vbd.evaluation.froc import Froc, FrocCurve
from vbd.records import READING_COLUMNS
from vbd.reports.scores.read import Chosen


@dataclass(frozen=True)
class Human:
    """Readers and detector, on the images that more than one reader read."""

    reference: HumanReference
    detector: Froc  # held against the very boxes that the readers are held against


@dataclass(frozen=True)
class BesideReaders:
    """Readers and detector at the same number of false boxes per image; NaN where there is nothing to be found."""

    name: str  # of a class, or `all`
    reference_boxes: int
    false_positives_per_image: float  # of the readers
    readers: float  # their sensitivity
    detector: float  # its sensitivity at that rate or below
    score_threshold: float  # where it reaches that; NaN where already its best boxes exceed the rate


def read_human(chosen: Chosen, dataset: PreparedDataset, *, iou_threshold: float) -> Human | None:
    """The human reference for some predictions, of the readers that the dataset was prepared with.

    None where no two readers of one of their images are known.
    """
    names = {name: storage.join(dataset.location, "annotations", f"{name}.parquet") for name in ("readings", "readers")}
    if not all(storage.exists(location) for location in names.values()):
        return None
    ids = {truth.image_id for truth in chosen.truths}
    columns = {"readings": list(READING_COLUMNS), "readers": ["image_id", "rad_id"]}
    tables = {name: storage.read_table(location, columns[name]).to_pandas() for name, location in names.items()}
    readings, readers = (
        of_chosen_readers(table[table["image_id"].isin(ids)], dataset.options)
        for table in (tables["readings"], tables["readers"])
    )
    if not readers.groupby("image_id")["rad_id"].nunique().gt(1).any():
        return None
    return Human(
        human_reference(readings, readers, iou_threshold=iou_threshold),
        froc_against_readers(chosen.detections, readings, readers, iou_threshold=iou_threshold),
    )


def beside_readers(human: Human) -> list[BesideReaders]:
    """All findings together, then each class that the readers drew."""
    reference, detector = human.reference, human.detector
    named = {"all": (reference.pooled, detector.pooled)}
    named |= {name: (point, detector.per_class[name]) for name, point in reference.per_class.items()}
    lines = []
    for name, (point, curve) in named.items():
        if point.reference_boxes:
            found, score = sensitivity_at(curve, point.false_positives_per_image)
            lines.append(
                BesideReaders(
                    name, point.reference_boxes, point.false_positives_per_image, point.sensitivity, found, score
                )
            )
    return lines


def sensitivity_at(curve: FrocCurve, rate: float) -> tuple[float, float]:
    """Sensitivity of a curve at no more than `rate` false boxes per image, and the score threshold that gives it."""
    if not curve.num_truths or math.isnan(rate):
        return math.nan, math.nan
    # A rate that is a ratio of counts must meet its own step of the curve.
    allowed = int(np.searchsorted(curve.curve_false_positives_per_image, rate + 1e-12, side="right"))
    if not allowed:
        return 0.0, math.nan
    return float(curve.curve_sensitivities[allowed - 1]), float(curve.curve_scores[allowed - 1])
