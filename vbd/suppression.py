"""The other rules of fusing, which weighted box fusion is compared with; arguments and result as in `vbd.fusing`.

Non-maximum weighted: Zhou et al., "CAD: Scale invariant framework for real-time object detection", 2017.
Soft-NMS: Bodla et al., "Soft-NMS: Improving object detection with one line of code", 2017.
"""

import functools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from vbd.fusing import Fused, canonical_order, group_starts, in_order


def suppression(
    boxes_xyxy: NDArray,
    scores: NDArray,
    labels: NDArray,
    models: NDArray,
    *,
    weights: NDArray,
    iou_threshold: NDArray,
    skip_threshold: float,
    images: NDArray,
) -> Fused:
    """Plain non-maximum suppression: the best box of each group stays, with its score x weight / max weight.

    boxes (n, 4), scores, labels, models, images (n,), weights (M,), iou_threshold (labels,).
    """
    weighted, order, starts, threshold = _grouped(
        boxes_xyxy, scores, labels, models, images, weights, iou_threshold, skip_threshold
    )
    _, founders, cluster_of_row = _founder_kernel()(boxes_xyxy[order], weighted[order], starts, threshold)
    first_rows = order[founders]
    return in_order(boxes_xyxy[first_rows], weighted[first_rows], labels, images, first_rows, order, cluster_of_row)


def non_maximum_weighted(
    boxes_xyxy: NDArray,
    scores: NDArray,
    labels: NDArray,
    models: NDArray,
    *,
    weights: NDArray,
    iou_threshold: NDArray,
    skip_threshold: float,
    images: NDArray,
) -> Fused:
    """The group's mean weighted by score and by overlap with its best box, whose score stays; arguments as above."""
    weighted, order, starts, threshold = _grouped(
        boxes_xyxy, scores, labels, models, images, weights, iou_threshold, skip_threshold
    )
    means, founders, cluster_of_row = _founder_kernel()(boxes_xyxy[order], weighted[order], starts, threshold)
    first_rows = order[founders]
    return in_order(means, weighted[first_rows], labels, images, first_rows, order, cluster_of_row)


def soft_suppression(
    boxes_xyxy: NDArray,
    scores: NDArray,
    labels: NDArray,
    models: NDArray,
    *,
    weights: NDArray,
    iou_threshold: NDArray,
    skip_threshold: float,
    images: NDArray,
    min_score: float = 1e-3,
) -> Fused:
    """Linear soft-NMS: a box that overlaps a better one by more than the threshold has its score times 1 - IoU.

    What falls to `min_score` is dropped; the other arguments as above.
    """
    weighted, order, starts, threshold = _grouped(
        boxes_xyxy, scores, labels, models, images, weights, iou_threshold, skip_threshold
    )
    decayed = _soft_kernel()(boxes_xyxy[order], weighted[order], starts, threshold)
    stays = decayed > min_score
    rows = order[stays]
    return in_order(boxes_xyxy[rows], decayed[stays], labels, images, rows, rows, np.arange(len(rows)))


def mean_of_linked(boxes_xyxy: NDArray, labels: NDArray, images: NDArray, *, iou_threshold: float) -> Fused:
    """The plain mean of all boxes of an image and label that are linked by an IoU above the threshold, be it via others.

    boxes (n, 4), labels, images (n,); the score is the number of boxes.
    """
    order = canonical_order(
        boxes_xyxy,
        np.ones(len(labels)),
        labels,
        np.zeros(len(labels), np.int64),
        images,
        keep=np.ones(len(labels), bool),
    )
    starts = group_starts(images[order], labels[order])
    component_of_row, first_rows = _link_kernel()(boxes_xyxy[order], starts, iou_threshold)
    counts = np.bincount(component_of_row, minlength=len(first_rows))
    sums = np.stack([np.bincount(component_of_row, column, len(first_rows)) for column in boxes_xyxy[order].T], axis=1)
    means = sums / counts[:, None]
    return in_order(means, counts.astype(np.float64), labels, images, order[first_rows], order, component_of_row)


def _grouped(
    boxes: NDArray,
    scores: NDArray,
    labels: NDArray,
    models: NDArray,
    images: NDArray,
    weights: NDArray,
    iou_threshold: NDArray,
    skip_threshold: float,
) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Weighted scores, rows in canonical order, where groups start and each group's threshold."""
    weight = weights / weights.max()
    weighted = scores * weight[models]
    order = canonical_order(
        boxes, weighted, labels, models, images, keep=(scores >= skip_threshold) & (weight[models] > 0)
    )
    starts = group_starts(images[order], labels[order])
    return weighted, order, starts, iou_threshold[labels[order[starts[:-1]]]]


@functools.cache
def _founder_kernel() -> Callable:
    import numba  # 0.4 s: kept out of --help

    return numba.njit(cache=True)(_founders)


def _founders(boxes: NDArray, scores: NDArray, starts: NDArray, thresholds: NDArray) -> tuple:
    """Groups each row with the founder it overlaps most, or makes it a founder; compiled.

    Returns groups' means weighted by score x IoU with the founder (m, 4), founders' rows (m,), each row's group (n,).
    """
    n = len(scores)
    founders, group_of_row = np.empty(n, np.int64), np.empty(n, np.int64)
    moment, total = np.zeros((n, 4)), np.zeros(n)
    used = 0
    for g in range(len(starts) - 1):
        base = used
        for row in range(starts[g], starts[g + 1]):
            x0, y0, x1, y1 = boxes[row, 0], boxes[row, 1], boxes[row, 2], boxes[row, 3]
            best, best_iou = -1, thresholds[g]
            for c in range(base, used):
                f = founders[c]
                width = min(x1, boxes[f, 2]) - max(x0, boxes[f, 0])
                height = min(y1, boxes[f, 3]) - max(y0, boxes[f, 1])
                if width <= 0 or height <= 0:
                    continue
                shared = width * height
                other = (boxes[f, 2] - boxes[f, 0]) * (boxes[f, 3] - boxes[f, 1])
                iou = shared / ((x1 - x0) * (y1 - y0) + other - shared)
                if iou > best_iou:
                    best, best_iou = c, iou
            if best < 0:
                best, best_iou = used, 1.0
                founders[used] = row
                used += 1
            group_of_row[row] = best
            total[best] += scores[row] * best_iou
            for k in range(4):
                moment[best, k] += scores[row] * best_iou * boxes[row, k]
    means = np.empty((used, 4))
    for c in range(used):
        for k in range(4):
            means[c, k] = moment[c, k] / total[c] if total[c] > 0 else boxes[founders[c], k]
    return means, founders[:used], group_of_row


@functools.cache
def _soft_kernel() -> Callable:
    import numba

    return numba.njit(cache=True)(_soften)


def _soften(boxes: NDArray, scores: NDArray, starts: NDArray, thresholds: NDArray) -> NDArray:
    """Scores after decay, in the rows' order; compiled."""
    decayed = scores.copy()
    done = np.zeros(len(scores), np.bool_)
    for g in range(len(starts) - 1):
        for _ in range(starts[g], starts[g + 1]):
            best = -1
            for row in range(starts[g], starts[g + 1]):
                if not done[row] and (best < 0 or decayed[row] > decayed[best]):
                    best = row
            done[best] = True
            area = (boxes[best, 2] - boxes[best, 0]) * (boxes[best, 3] - boxes[best, 1])
            for row in range(starts[g], starts[g + 1]):
                if done[row]:
                    continue
                width = min(boxes[row, 2], boxes[best, 2]) - max(boxes[row, 0], boxes[best, 0])
                height = min(boxes[row, 3], boxes[best, 3]) - max(boxes[row, 1], boxes[best, 1])
                if width <= 0 or height <= 0:
                    continue
                shared = width * height
                other = (boxes[row, 2] - boxes[row, 0]) * (boxes[row, 3] - boxes[row, 1])
                iou = shared / (area + other - shared)
                if iou > thresholds[g]:
                    decayed[row] *= 1 - iou
    return decayed


@functools.cache
def _link_kernel() -> Callable:
    import numba

    return numba.njit(cache=True)(_link)


def _link(boxes: NDArray, starts: NDArray, threshold: float) -> tuple[NDArray, NDArray]:
    """Each row's connected component (n,), counted from 0, and the first row of each (m,); compiled."""
    n = len(boxes)
    component, first_rows, pending = np.full(n, -1), np.empty(n, np.int64), np.empty(n, np.int64)
    used = 0
    for g in range(len(starts) - 1):
        for founder in range(starts[g], starts[g + 1]):
            if component[founder] >= 0:
                continue
            component[founder] = used
            first_rows[used] = founder
            pending[0], waiting = founder, 1
            while waiting > 0:
                waiting -= 1
                row = pending[waiting]
                area = (boxes[row, 2] - boxes[row, 0]) * (boxes[row, 3] - boxes[row, 1])
                for other in range(starts[g], starts[g + 1]):
                    width = min(boxes[row, 2], boxes[other, 2]) - max(boxes[row, 0], boxes[other, 0])
                    height = min(boxes[row, 3], boxes[other, 3]) - max(boxes[row, 1], boxes[other, 1])
                    if component[other] >= 0 or width <= 0 or height <= 0:
                        continue
                    other_area = (boxes[other, 2] - boxes[other, 0]) * (boxes[other, 3] - boxes[other, 1])
                    if width * height / (area + other_area - width * height) > threshold:
                        component[other] = used
                        pending[waiting] = other
                        waiting += 1
            used += 1
    return component, first_rows[:used]
