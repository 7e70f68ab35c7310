"""Weighted box fusion over flat arrays: one call fuses the boxes of one image or of thousands.

Solovyev, Wang and Gabruseva, "Weighted boxes fusion: Ensembling boxes from different object detection models", 2021.
Radiologists who read the same film and detectors that looked at the same image are fused by the same rule.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vbd.boxes import Boxes

Confidence = Literal["avg", "max", "box_and_model_avg", "absent_model_aware_avg", "sum"]
CONFIDENCES: tuple[Confidence, ...] = get_args(Confidence)


@dataclass(frozen=True)
class Fused:
    """Fused boxes, by image and then by descending score."""

    boxes: Boxes  # (m, 4) xyxy float32, in the input's unit
    scores: NDArray[np.float64]  # (m,)
    labels: NDArray[np.int64]  # (m,)
    images: NDArray[np.int64]  # (m,) image index of each fused box; zeros when no images were given
    members: NDArray[np.int64]  # (n,) row of the fused box that each input box went into, -1 when it was dropped


def weighted_box_fusion(
    boxes_xyxy: ArrayLike,
    scores: ArrayLike,
    labels: ArrayLike,
    models: ArrayLike,
    *,
    weights: ArrayLike,
    iou_threshold: float | NDArray = 0.4,
    skip_threshold: float = 0.0,
    confidence: Confidence = "avg",
    images: ArrayLike | None = None,
) -> Fused:
    """Fuses boxes of the same image and label that overlap by more than `iou_threshold`.

    boxes (n, 4), scores (n,), labels (n,) from 0, models (n,) in 0..M-1, weights (M,); `iou_threshold` is one number
    or one per label; `images` (n,) keeps boxes of different images apart. A box is dropped when its score is below
    `skip_threshold`, its model's weight is 0, or it has no area. A model of weight 0 counts as absent.

    Ties in weighted score are settled by model and then by coordinates: the order of the rows never matters.
    `sum` adds the weighted confidences up, so that it can exceed 1 when a model puts several boxes into a cluster.
    """
    boxes = np.asarray(boxes_xyxy, np.float64).reshape(-1, 4)
    score = np.asarray(scores, np.float64)
    label, model = np.asarray(labels, np.int64), np.asarray(models, np.int64)
    image = np.zeros(len(boxes), np.int64) if images is None else np.asarray(images, np.int64)
    weight = np.asarray(weights, np.float64)
    if weight.ndim != 1 or not (weight >= 0).all() or not weight.any():
        raise ValueError(f"weights {weight.tolist()}: want one number of 0 or more per model, not all 0")
    if confidence not in CONFIDENCES:
        raise ValueError(f"confidence {confidence!r}; choose one of {', '.join(CONFIDENCES)}")
    weighted = score * weight[model]
    order = canonical_order(boxes, weighted, label, model, image, keep=(score >= skip_threshold) & (weight[model] > 0))
    starts = group_starts(image[order], label[order])
    thresholds = np.asarray(iou_threshold, np.float64)
    group_label = label[order[starts[:-1]]]
    threshold = np.full(len(group_label), thresholds) if thresholds.ndim == 0 else thresholds[group_label]
    sums = _kernel()(boxes[order], weighted[order], model[order], starts, threshold, weight)
    cluster_boxes, totals, maxima, counts, weight_sums, unique_sums, first_rows, cluster_of_row = sums
    fused_scores = _confidences(confidence, totals, maxima, counts, weight_sums, unique_sums, weight)
    return in_order(cluster_boxes, fused_scores, label, image, order[first_rows], order, cluster_of_row)


def canonical_order(
    boxes: NDArray, scores: NDArray, labels: NDArray, models: NDArray, images: NDArray, *, keep: NDArray
) -> NDArray[np.int64]:
    """Rows worth fusing, by image, label, descending score and then whatever settles a tie: -> (k,) with k <= n."""
    sides = boxes[:, 2:] - boxes[:, :2]
    rows = np.flatnonzero(keep & np.isfinite(boxes).all(1) & np.isfinite(scores) & (sides > 0).all(1))
    if not len(rows):
        return rows
    # Two keys sort most of it; the other five are needed only where scores tie.
    group = images[rows] * (labels[rows].max() + 1) + labels[rows]
    rows = rows[np.lexsort((-scores[rows], group))]
    same = (np.diff(scores[rows]) == 0) & (np.diff(images[rows]) == 0) & (np.diff(labels[rows]) == 0)
    tied = np.flatnonzero(np.append(same, False) | np.insert(same, 0, False))
    if len(tied):
        run = np.cumsum(np.insert(~same, 0, True))[tied]
        some = rows[tied]
        keys = (boxes[some, 3], boxes[some, 2], boxes[some, 1], boxes[some, 0], models[some], run)
        rows[tied] = some[np.lexsort(keys)]
    return rows


def group_starts(images: NDArray, labels: NDArray) -> NDArray[np.int64]:
    """Where each (image, label) begins in sorted rows, and the end: (n,), (n,) -> (groups + 1,)."""
    if not len(images):
        return np.zeros(1, np.int64)
    is_new = (np.diff(images) != 0) | (np.diff(labels) != 0)
    return np.concatenate([[0], np.flatnonzero(is_new) + 1, [len(images)]]).astype(np.int64)


def _confidences(
    confidence: Confidence,
    totals: NDArray,
    maxima: NDArray,
    counts: NDArray,
    weight_sums: NDArray,
    unique_sums: NDArray,
    weights: NDArray,
) -> NDArray[np.float64]:
    """Scores of the clusters: all arguments but the last have one number per cluster."""
    total_weight, num_models = weights.sum(), np.count_nonzero(weights)
    match confidence:
        case "avg":
            return totals / counts * np.minimum(counts, num_models) / total_weight
        case "max":
            return maxima / weights.max()
        case "box_and_model_avg":
            return totals / weight_sums * unique_sums / total_weight
        case "absent_model_aware_avg":
            return totals / (weight_sums + total_weight - unique_sums)
        case "sum":
            return totals / total_weight


def in_order(
    boxes: NDArray,
    scores: NDArray,
    labels: NDArray,
    images: NDArray,
    first_rows: NDArray,
    order: NDArray,
    cluster_of_row: NDArray,
) -> Fused:
    """Clusters by image and descending score, and the row of each input box's cluster.

    Of clusters: boxes (m, 4), scores (m,), first_rows (m,) their first input row. Of input: labels, images (n,).
    `order` (k,) are the input rows that took part, `cluster_of_row` (k,) their clusters.
    """
    cluster_labels, cluster_images = labels[first_rows], images[first_rows]
    # Clusters come by image, label and founding: a stable sort settles equal scores in that order.
    by_score = np.lexsort((-scores, cluster_images))
    rank = np.empty(len(by_score), np.int64)
    rank[by_score] = np.arange(len(by_score))
    members = np.full(len(labels), -1, np.int64)
    members[order] = rank[cluster_of_row]
    return Fused(
        boxes=boxes[by_score].astype(np.float32),
        scores=scores[by_score],
        labels=cluster_labels[by_score],
        images=cluster_images[by_score],
        members=members,
    )


@functools.cache
def _kernel() -> Callable:
    import numba  # 0.4 s: kept out of --help

    return numba.njit(cache=True)(_cluster)


def _cluster(
    boxes: NDArray, scores: NDArray, models: NDArray, starts: NDArray, thresholds: NDArray, weights: NDArray
) -> tuple:
    """The loop of the paper over groups of rows in order of descending score; compiled.

    Returns per cluster: box, sum and maximum of the weighted scores, number of boxes, sum of their weights, sum of the
    weights of the different models, first row; and per row its cluster.
    """
    n = len(scores)
    fused = np.empty((n, 4))
    moment = np.empty((n, 4))
    totals, maxima = np.zeros(n), np.zeros(n)
    weight_sums, unique_sums = np.zeros(n), np.zeros(n)
    counts, first_rows, cluster_of_row = np.zeros(n, np.int64), np.zeros(n, np.int64), np.empty(n, np.int64)
    used = 0
    longest = 0
    for g in range(len(starts) - 1):
        longest = max(longest, starts[g + 1] - starts[g])
    seen = np.zeros((longest, len(weights)), np.bool_)
    for g in range(len(starts) - 1):
        base = used
        for row in range(starts[g], starts[g + 1]):
            x0, y0, x1, y1 = boxes[row, 0], boxes[row, 1], boxes[row, 2], boxes[row, 3]
            area = (x1 - x0) * (y1 - y0)
            best, best_iou = -1, thresholds[g]
            for c in range(base, used):
                width = min(x1, fused[c, 2]) - max(x0, fused[c, 0])
                height = min(y1, fused[c, 3]) - max(y0, fused[c, 1])
                if width <= 0 or height <= 0:
                    continue
                shared = width * height
                cluster_area = (fused[c, 2] - fused[c, 0]) * (fused[c, 3] - fused[c, 1])
                iou = shared / (cluster_area + area - shared)
                if iou > best_iou:
                    best, best_iou = c, iou
            score, model = scores[row], models[row]
            if best < 0:
                best = used
                used += 1
                first_rows[best] = row
                seen[best - base, :] = False
                for k in range(4):
                    fused[best, k] = boxes[row, k]
                    moment[best, k] = 0.0
            cluster_of_row[row] = best
            totals[best] += score
            maxima[best] = max(maxima[best], score)
            counts[best] += 1
            weight_sums[best] += weights[model]
            if not seen[best - base, model]:
                seen[best - base, model] = True
                unique_sums[best] += weights[model]
            for k in range(4):
                moment[best, k] += score * boxes[row, k]
                # A lone box stays exact; a cluster without any confidence keeps its first box.
                if counts[best] > 1 and totals[best] > 0:
                    fused[best, k] = moment[best, k] / totals[best]
    return (
        fused[:used],
        totals[:used],
        maxima[:used],
        counts[:used],
        weight_sums[:used],
        unique_sums[:used],
        first_rows[:used],
        cluster_of_row,
    )
