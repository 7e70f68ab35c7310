"""Scores that mean the same for every model: the probability of a true positive.

Fusing models whose scores are not calibrated to each other can be worse than the best of them. All fits are plain numbers that
live in JSON.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from vbd.config.checked import between
from vbd.ensemble.scores.curves import Curve, fit_best
from vbd.evaluation.matching import flatten, match_flat
from vbd.hashing import stable_hash
from vbd.labels import NO_FINDING, NUM_FINDINGS
from vbd.records import Detections, Truth

# Parts of the images on which kinds of curves are compared.
_CHOICE_PARTS = 3


@dataclass(frozen=True)
class Calibration:
    """One model's curves: of its own for classes with enough true positives, pooled for the others."""

    pooled: Curve
    per_class: dict[Annotated[int, between(0, NUM_FINDINGS - 1)], Curve]

    def apply(self, detections: Sequence[Detections]) -> list[Detections]:
        """The same detections with P(true positive) as score, by descending score."""
        return [self._apply(found) for found in detections]

    def _apply(self, found: Detections) -> Detections:
        scores = self.pooled(found.scores)
        for label, curve in self.per_class.items():
            rows = found.labels == label
            scores[rows] = curve(found.scores[rows])
        order = np.argsort(-scores, kind="stable")
        return dataclasses.replace(
            found,
            boxes=found.boxes[order],
            scores=scores[order].astype(np.float32),
            labels=found.labels[order],
        )

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, of which `checked.parse` makes a Calibration again."""
        return {
            "pooled": dataclasses.asdict(self.pooled),
            "per_class": {str(label): dataclasses.asdict(curve) for label, curve in self.per_class.items()},
        }


def fit_calibration(
    detections: Sequence[Detections],
    truths: Sequence[Truth],
    *,
    iou_threshold: float = 0.4,
    min_positives: int = 50,
    seed: int = 0,
) -> Calibration:
    """Fits one model's scores to P(true positive at IoU > `iou_threshold`), on images it was not trained on.

    A class has its own curve when it has at least `min_positives` true positives and as many false ones. Each curve is of
    the kind that predicts best out of fold, within these images alone; see `calibration_curves.fit_best`.
    """
    found, wanted = flatten([dataclasses.replace(d, no_finding=None) for d in detections], truths)
    matches = match_flat(found, wanted, len(truths), iou_threshold=iou_threshold)
    image_ids = [truth.image_id for truth in truths]
    parts = split_parts(image_ids, _CHOICE_PARTS, seed=seed, purpose="kind of curve")[matches.images]
    per_class = {}
    for label in range(NUM_FINDINGS):
        rows = slice(matches.starts[label], matches.starts[label + 1])
        hits = matches.is_true_positive[rows]
        if min(hits.sum(), (~hits).sum()) >= min_positives:
            per_class[label] = fit_best(matches.scores[rows], hits, parts[rows])
    rows = slice(0, matches.starts[NO_FINDING])
    return Calibration(fit_best(matches.scores[rows], matches.is_true_positive[rows], parts[rows]), per_class)


def split_parts(image_ids: Sequence[str], parts: int, *, seed: int = 0, purpose: str = "") -> NDArray[np.int64]:
    """Part 0..parts-1 of each image: (n,) -> (n,). It depends on the image's id, the seed and the purpose alone.

    Parts within parts must differ in purpose: otherwise they would be the same images again.
    """
    return np.array([stable_hash(f"{purpose}{seed}:{image_id}") % parts for image_id in image_ids], np.int64)


def calibrate_crosswise(
    detections: Sequence[Detections], truths: Sequence[Truth], *, parts: int = 5, seed: int = 0
) -> list[Detections]:
    """Calibrated scores, each image's by a fit that has not seen it; in the order of `detections`.

    The kinds of the curves are chosen without the image as well.
    """
    part_of_found = split_parts([found.image_id for found in detections], parts, seed=seed)
    part_of_truth = split_parts([truth.image_id for truth in truths], parts, seed=seed)
    result: dict[str, Detections] = {}
    for part in range(parts):
        fitted = fit_calibration(
            [found for found, p in zip(detections, part_of_found, strict=True) if p != part],
            [truth for truth, p in zip(truths, part_of_truth, strict=True) if p != part],
        )
        held_out = [found for found, p in zip(detections, part_of_found, strict=True) if p == part]
        result |= {found.image_id: found for found in fitted.apply(held_out)}
    return [result[found.image_id] for found in detections]
