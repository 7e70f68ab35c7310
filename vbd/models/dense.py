"""What the one-stage detectors share: a normaliser for their losses, and from scores to boxes."""

import torch
from torch import Tensor
from torchvision.ops import batched_nms, clip_boxes_to_image

from vbd.records import Prediction

SCORE_THRESHOLD = 1e-3
NMS_IOU_THRESHOLD = 0.5
MAX_CANDIDATES = 1000  # (box, class) pairs of one image that enter non-maximum suppression
MAX_DETECTIONS = 100
# Weight of one batch in the running mean, as in Detectron2's RetinaNet.
_MOMENTUM = 0.1


def positives_to_divide_by(num_positives: Tensor, batch_size: int, *, mean_per_image: Tensor) -> Tensor:
    """What a sum over all anchors of a batch is divided by: a scalar of at least 1.

    Both papers divide by the number of positive anchors, so the loss of a batch of normal images, which has none,
    is that of an ordinary batch times a hundred. Here the divisor never falls below the running mean for a batch of
    this size: a negative anchor weighs about the same in every batch (as in Detectron2's RetinaNet, which divides by
    the running mean alone). `mean_per_image`, a scalar buffer, is updated in place from batches that have positives.
    """
    with torch.no_grad():
        num_positives = num_positives.to(mean_per_image.dtype)
        updated = mean_per_image + _MOMENTUM * (num_positives / batch_size - mean_per_image)
        mean_per_image.copy_(torch.where(num_positives > 0, updated, mean_per_image))
        return torch.maximum(num_positives, mean_per_image * batch_size).clamp(min=1)


def select(boxes_xyxy: Tensor, scores: Tensor, image_hw: tuple[int, int]) -> Prediction:
    """The boxes of one image: candidates (A, 4) with a score for every class (A, C) to at most 100 detections.

    A candidate may stand for several classes; suppression works within a class.
    """
    flat_scores = scores.flatten()
    flat_scores, order = flat_scores.topk(min(MAX_CANDIDATES, len(flat_scores)))
    order, flat_scores = order[flat_scores > SCORE_THRESHOLD], flat_scores[flat_scores > SCORE_THRESHOLD]
    labels = order % scores.shape[1]
    boxes = clip_boxes_to_image(boxes_xyxy[order // scores.shape[1]], image_hw)
    has_area = (boxes[:, 2:] > boxes[:, :2]).all(1)
    boxes, flat_scores, labels = boxes[has_area], flat_scores[has_area], labels[has_area]
    kept = batched_nms(boxes, flat_scores, labels, NMS_IOU_THRESHOLD)[:MAX_DETECTIONS]
    return {"boxes": boxes[kept], "labels": labels[kept], "scores": flat_scores[kept]}
