"""The competition's metric: PASCAL VOC 2010 mean average precision at IoU > 0.4 over 14 findings and "No finding".

Everingham et al., "The PASCAL Visual Object Classes (VOC) Challenge", 2010: precision is made to fall with recall and
integrated over all points. Which detection is true is settled in `matching`.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vbd.caches import compiled
from vbd.evaluation.matching import (
    CLASSES,
    NUM_CLASSES,
    FlatBoxes,
    Ignored,
    Matches,
    assemble,
    count_truths,
    flatten,
    image_index,
    judge,
    match,
    match_flat,
    rank,
)
from vbd.labels import NUM_FINDINGS
from vbd.records import Detections, Truth

__all__ = [
    "CLASSES",
    "NUM_CLASSES",
    "FlatBoxes",
    "Matches",
    "Scores",
    "average_precisions",
    "average_precisions_101",
    "evaluate",
    "flatten",
    "image_index",
    "match",
    "match_flat",
    "mean_over_known",
    "precision_recall",
    "score_flat",
    "scores_of",
]


@dataclass(frozen=True)
class Scores:
    """Average precisions; NaN where there is nothing to be found."""

    map_40: float  # the competition's: over the 15 classes with ground truth
    map_40_findings: float  # over the 14 findings
    map_coco_101: float  # COCO's own matching (IoU >= threshold) and 101 recall points, over the 14 findings
    per_class: dict[str, float]  # all-point AP
    num_truths: dict[str, int]
    num_detections: dict[str, int]  # that count: without the ignored ones
    num_images: int


def evaluate(detections: Sequence[Detections], truths: Sequence[Truth], *, iou_threshold: float = 0.4) -> Scores:
    """Scores detections against the ground truth, joined by image_id.

    An image without detections counts. Raises InputError for an image that is unknown, given twice, or has a score or
    coordinate that is not finite.
    """
    found, wanted = flatten(detections, truths)
    return score_flat(found, wanted, len(truths), iou_threshold=iou_threshold)


def score_flat(
    found: FlatBoxes, wanted: FlatBoxes, num_images: int, *, iou_threshold: float = 0.4, ignored: Ignored | None = None
) -> Scores:
    """`evaluate` of flat boxes, with some of them `ignored` as in `matching.match_flat`."""
    ranking, num_truths = rank(found), count_truths(wanted, num_images, ignored)
    voc, coco = (
        judge(found, wanted, num_images, ranking, iou_threshold=iou_threshold, coco=rule, ignored=ignored)
        for rule in (False, True)
    )
    return scores_of(assemble(ranking, voc, num_truths), assemble(ranking, coco, num_truths))


def scores_of(voc: Matches, coco: Matches) -> Scores:
    """Scores of the same detections matched by VOC's and by COCO's rule."""
    per_class = average_precisions(voc)
    num_detections, num_truths = np.diff(voc.starts), voc.num_truths.sum(1)
    return Scores(
        map_40=mean_over_known(per_class),
        map_40_findings=mean_over_known(per_class[:NUM_FINDINGS]),
        map_coco_101=mean_over_known(average_precisions_101(coco)[:NUM_FINDINGS]),
        per_class=dict(zip(CLASSES, per_class.tolist(), strict=True)),
        num_truths=dict(zip(CLASSES, num_truths.tolist(), strict=True)),
        num_detections=dict(zip(CLASSES, num_detections.tolist(), strict=True)),
        num_images=voc.num_truths.shape[1],
    )


def average_precisions(matches: Matches, image_weights: NDArray | None = None) -> NDArray[np.float64]:
    """All-point AP of each class: -> (15,), or (replicates, 15) for integer weights (replicates, images).

    A weight says how often an image is in a bootstrap replicate; NaN where it leaves nothing to be found.
    """
    num_images = matches.num_truths.shape[1]
    weights = np.ones((1, num_images)) if image_weights is None else np.asarray(image_weights, np.float64)
    positives = weights @ matches.num_truths.T
    values = _ap_kernel()(matches.is_true_positive, matches.images, matches.starts, positives, weights)
    return values[0] if image_weights is None else values


def average_precisions_101(matches: Matches) -> NDArray[np.float64]:
    """COCO's AP of each class, precision read off at recalls 0, 0.01 .. 1: -> (15,)."""
    values = np.full(NUM_CLASSES, np.nan)
    recalls = np.linspace(0, 1, 101)
    for label, positives in enumerate(matches.num_truths.sum(1)):
        if positives:
            hits = matches.is_true_positive[matches.starts[label] : matches.starts[label + 1]]
            # Recall rises at the true positives only, and there precision is highest.
            places = np.flatnonzero(hits)
            found = np.arange(1, len(places) + 1)
            envelope = np.maximum.accumulate((found / (places + 1))[::-1])[::-1]
            # Beyond the last recall reached, precision is 0.
            at = np.searchsorted(found / positives, recalls, side="left")
            values[label] = np.append(envelope, 0.0)[at].mean()
    return values


def precision_recall(hits: NDArray[np.bool_], num_positives: int) -> tuple[NDArray, NDArray]:
    """Recall and precision after each detection, in descending score: (n,) -> (n,), (n,)."""
    true_positives = np.cumsum(hits)
    return true_positives / num_positives, true_positives / np.arange(1, len(hits) + 1)


def mean_over_known(values: NDArray) -> float:
    """Mean over the classes that have ground truth; NaN when none has."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


@functools.cache
def _ap_kernel() -> Callable:
    return compiled(_all_point)


def _all_point(hits: NDArray, images: NDArray, starts: NDArray, positives: NDArray, weights: NDArray) -> NDArray:
    """All-point AP per replicate and class; compiled. An image of weight 3 stands for three equal images.

    Copies of one true positive share one precision: within the run precision rises, so that its end is its envelope.
    """
    values = np.full(positives.shape, np.nan)
    precisions, gains = np.empty(len(hits)), np.empty(len(hits))
    for r in range(positives.shape[0]):
        for c in range(positives.shape[1]):
            if positives[r, c] == 0:
                continue
            true_positives, seen, count = 0.0, 0.0, 0
            for row in range(starts[c], starts[c + 1]):
                weight = weights[r, images[row]]
                seen += weight
                if hits[row] and weight > 0:
                    true_positives += weight
                    precisions[count] = true_positives / seen
                    gains[count] = weight
                    count += 1
            area, envelope = 0.0, 0.0
            for k in range(count - 1, -1, -1):
                envelope = max(envelope, precisions[k])
                area += gains[k] * envelope
            values[r, c] = area / positives[r, c]
    return values
