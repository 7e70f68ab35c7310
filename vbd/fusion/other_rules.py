"""The other rules of fusing, which weighted box fusion is compared with; arguments and result as in `vbd.fusion.wbf`.

Weights scale scores as the authors of weighted box fusion do it in their code for these rules.

Non-maximum weighted: Zhou et al., "CAD: Scale invariant framework for real-time object detection", 2017.
Soft-NMS: Bodla et al., "Soft-NMS: Improving object detection with one line of code", 2017.
"""

import numpy as np
from numpy.typing import NDArray

from vbd.fusion.wbf import Fused, canonical_order, in_order


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
    """Plain non-maximum suppression: the best box of each group stays, with its score x weight / sum of the weights.

    boxes (n, 4), scores, labels, models, images (n,), weights (M,), iou_threshold (labels,).
    """
    from vbd.fusion.kernels import found

    share = weights / weights.sum()
    weighted, *groups = _grouped(boxes_xyxy, scores, labels, models, images, share, iou_threshold, skip_threshold)
    _, first_rows, group_of_row = found(boxes_xyxy, weighted, *groups)
    return in_order(boxes_xyxy[first_rows], weighted[first_rows], labels, images, first_rows, groups[0], group_of_row)


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
    """The group's mean weighted by score and by overlap with its best box, whose score x weight / largest weight stays.

    Arguments as above.
    """
    from vbd.fusion.kernels import found

    share = weights / weights.max()
    weighted, *groups = _grouped(boxes_xyxy, scores, labels, models, images, share, iou_threshold, skip_threshold)
    means, first_rows, group_of_row = found(boxes_xyxy, weighted, *groups)
    return in_order(means, weighted[first_rows], labels, images, first_rows, groups[0], group_of_row)


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
    sigma: float = 0.0,
    min_score: float = 1e-3,
) -> Fused:
    """Soft-NMS: every box stays, but its score decays with its overlap with each better one.

    Linear for a `sigma` of 0: times 1 - IoU where the IoU is above the threshold. Gaussian otherwise: times
    exp(-IoU^2 / sigma) whatever the threshold. A score starts as in `suppression`; a box whose score ends at `min_score`
    or below is dropped.
    """
    from vbd.fusion.kernels import soften

    share = weights / weights.sum()
    weighted, order, starts, threshold = _grouped(
        boxes_xyxy, scores, labels, models, images, share, iou_threshold, skip_threshold
    )
    decayed = soften(boxes_xyxy, weighted, order, starts, threshold, float(sigma))
    stays = decayed > min_score
    rows = order[stays]
    return in_order(boxes_xyxy[rows], decayed[stays], labels, images, rows, rows, np.arange(len(rows)))


def mean_of_linked(boxes_xyxy: NDArray, labels: NDArray, images: NDArray, *, iou_threshold: float) -> Fused:
    """The plain mean of all boxes of an image and label that are linked by an IoU above the threshold, be it via others.

    boxes (n, 4), labels, images (n,); the score is the number of boxes.
    """
    from vbd.fusion.kernels import link

    score, model, keep = np.ones(len(labels)), np.zeros(len(labels), np.int64), np.ones(len(labels), bool)
    order, starts = canonical_order(boxes_xyxy, score, labels, model, images, keep=keep)
    component_of_row, first_rows = link(boxes_xyxy, order, starts, iou_threshold)
    counts = np.bincount(component_of_row, minlength=len(first_rows))
    sums = np.stack([np.bincount(component_of_row, column, len(first_rows)) for column in boxes_xyxy[order].T], axis=1)
    means = sums / counts[:, None]
    return in_order(means, counts.astype(np.float64), labels, images, first_rows, order, component_of_row)


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
    """Weighted scores, rows in canonical order, where groups start in it and each group's threshold."""
    weighted = scores * weights[models]
    keep = (scores >= skip_threshold) & (weights[models] > 0)
    order, starts = canonical_order(boxes, weighted, labels, models, images, keep=keep)
    return weighted, order, starts, iou_threshold[labels[order[starts[:-1]]]]
