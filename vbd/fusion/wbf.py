"""Weighted box fusion over flat arrays: one call fuses the boxes of one image or of thousands.

Solovyev, Wang and Gabruseva, "Weighted boxes fusion: Ensembling boxes from different object detection models", 2021.
Radiologists who read the same film and detectors that looked at the same image are fused by the same rule.
"""

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
    from vbd.fusion.kernels import cluster

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
    keep = (score >= skip_threshold) & (weight[model] > 0)
    order, starts = canonical_order(boxes, weighted, label, model, image, keep=keep)
    thresholds = np.asarray(iou_threshold, np.float64)
    group_label = label[order[starts[:-1]]]
    threshold = np.full(len(group_label), thresholds) if thresholds.ndim == 0 else thresholds[group_label]
    fused, sums, first_rows, cluster_of_row = cluster(boxes, weighted, model, order, starts, threshold, weight)
    return in_order(fused, _confidences(confidence, sums, weight), label, image, first_rows, order, cluster_of_row)


def canonical_order(
    boxes: NDArray, scores: NDArray, labels: NDArray, models: NDArray, images: NDArray, *, keep: NDArray
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows worth fusing, by image, label, descending score and then whatever settles a tie, and where groups start.

    boxes (n, 4), the others (n,); -> (k,) with k <= n, (groups + 1,). A group is an image and a label.
    """
    from vbd.fusion.kernels import sort_groups, usable

    num_labels = int(labels.max(initial=0)) + 1
    num_keys = (int(images.max(initial=0)) + 1) * num_labels
    return sort_groups(boxes, scores, models, images * num_labels + labels, keep & usable(boxes, scores), num_keys)


def group_starts(images: NDArray, labels: NDArray) -> NDArray[np.int64]:
    """Where each (image, label) begins in sorted rows, and the end: (n,), (n,) -> (groups + 1,)."""
    if not len(images):
        return np.zeros(1, np.int64)
    is_new = (np.diff(images) != 0) | (np.diff(labels) != 0)
    return np.concatenate([[0], np.flatnonzero(is_new) + 1, [len(images)]]).astype(np.int64)


def _confidences(confidence: Confidence, sums: NDArray, weights: NDArray) -> NDArray[np.float64]:
    """Scores of the clusters, from what `kernels.cluster` summed up: (m, 5) -> (m,)."""
    totals, maxima, counts, weight_sums, unique_sums = sums.T
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
    from vbd.fusion.kernels import sort_groups

    cluster_labels, cluster_images = labels[first_rows], images[first_rows]
    # Clusters come by image, label and founding: their number, in the model's place, settles equal scores in that order.
    number, num_images = np.arange(len(scores)), int(images.max(initial=0)) + 1
    by_score, _ = sort_groups(boxes, scores, number, cluster_images, np.ones(len(scores), bool), num_images)
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
