"""Which finding is taken for which: a confusion matrix of boxes."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vbd.caches import compiled
from vbd.evaluation.matching import flatten
from vbd.labels import CLASS_NAMES, NO_FINDING, NUM_FINDINGS
from vbd.records import Detections, Truth

# The last row holds detections where nothing is, the last column findings that nothing found.
BACKGROUND = NUM_FINDINGS


@dataclass(frozen=True)
class Confusion:
    """Boxes by true and by predicted class; class 14 is a statement about an image and not among them."""

    # (15, 15): row the class of the truth, or background (14); column the class of the detection, or missed (14).
    # Rows 0..13 sum to the truths of each class, columns 0..13 to the detections kept; [14, 14] is 0.
    matrix: NDArray[np.int64]
    rows: tuple[str, ...]  # names of the rows
    columns: tuple[str, ...]
    score_threshold: float
    iou_threshold: float


def confusion(
    detections: Sequence[Detections], truths: Sequence[Truth], *, score_threshold: float, iou_threshold: float = 0.4
) -> Confusion:
    """Counts the detections of at least `score_threshold` by the class of the finding they lie on.

    Detections of all classes together take, by descending score (ties as they stand), the best finding of any class
    that is still free, at an IoU strictly above the threshold; each finding is taken once. Of equal overlaps a finding
    of the detection's own class comes first, then the earlier one. Errors as in `average_precision.evaluate`.
    """
    # "No finding" is about the image: its box on 0 0 1 1 has no place here.
    found, wanted = flatten([replace(found, no_finding=None) for found in detections], truths)
    kept = np.flatnonzero(found.scores >= score_threshold)
    kept = kept[np.argsort(-found.scores[kept], kind="stable")]
    finding = wanted.labels != NO_FINDING
    boxes, labels, images = wanted.boxes[finding], wanted.labels[finding], wanted.images[finding]
    # Truths come image by image.
    ends = np.searchsorted(images, np.arange(len(truths) + 1))
    taken_by = _kernel()(
        found.boxes[kept], found.labels[kept], found.images[kept], boxes, labels, ends, float(iou_threshold)
    )
    pairs = np.stack([np.where(taken_by < 0, BACKGROUND, np.append(labels, 0)[taken_by]), found.labels[kept]])
    matrix = np.zeros((NUM_FINDINGS + 1, NUM_FINDINGS + 1), np.int64)
    np.add.at(matrix, tuple(pairs), 1)
    missed = np.ones(len(labels), np.bool_)
    missed[taken_by[taken_by >= 0]] = False
    matrix[:NUM_FINDINGS, BACKGROUND] = np.bincount(labels[missed], minlength=NUM_FINDINGS)
    return Confusion(
        matrix=matrix,
        rows=(*CLASS_NAMES, "background"),
        columns=(*CLASS_NAMES, "missed"),
        score_threshold=score_threshold,
        iou_threshold=iou_threshold,
    )


@functools.cache
def _kernel() -> Callable:
    return compiled(_take)


def _take(
    boxes: NDArray,
    labels: NDArray,
    images: NDArray,
    truths: NDArray,
    truth_labels: NDArray,
    ends: NDArray,
    threshold: float,
) -> NDArray:
    """The truth each box takes, in order, or -1; compiled. Truths of image i are rows ends[i] to ends[i + 1]."""
    taken_by = np.full(len(boxes), -1, np.int64)
    taken = np.zeros(len(truths), np.bool_)
    for row in range(len(boxes)):
        best, best_iou = -1, threshold
        for t in range(ends[images[row]], ends[images[row] + 1]):
            width = min(boxes[row, 2], truths[t, 2]) - max(boxes[row, 0], truths[t, 0])
            height = min(boxes[row, 3], truths[t, 3]) - max(boxes[row, 1], truths[t, 1])
            if taken[t] or width <= 0 or height <= 0:
                continue
            area = (boxes[row, 2] - boxes[row, 0]) * (boxes[row, 3] - boxes[row, 1])
            truth_area = (truths[t, 2] - truths[t, 0]) * (truths[t, 3] - truths[t, 1])
            iou = width * height / (area + truth_area - width * height)
            is_own = truth_labels[t] == labels[row]
            is_tie = best >= 0 and iou == best_iou
            if iou > best_iou or (is_tie and is_own and truth_labels[best] != labels[row]):
                best, best_iou = t, iou
        if best >= 0:
            taken[best] = True
            taken_by[row] = best
    return taken_by
