"""YOLOX (Ge et al., 2021, arXiv:2107.08430) from the package pixeltable-yolox, whose module is `yolox`.

The library wants pixels of 0..255 and boxes as centre and size. Its network and its SimOTA assignment are used as they
are; the decoding and the loss are written here, equal in value, because the library's own keep grids of the wrong
device or precision, empty the CUDA cache for every image, and divide by one when a batch has no finding.
"""

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vbd.models.box_weights import box_weights
from vbd.models.dense import positives_to_divide_by, select
from vbd.models.pixels import per_pixel
from vbd.models.weights import FirstWeights, fetching, load_fitting
from vbd.records import Prediction, Target

_BOX_WEIGHT = 5.0  # of the IoU loss, as in the paper


class YOLOX(nn.Module):
    """YOLOX behind the contract of `vbd.models`."""

    mean_positives: Tensor
    first_weights: FirstWeights | None = None

    def __init__(self, variant: str, *, num_classes: int, pretrained: bool) -> None:
        super().__init__()
        from yolox.config import YoloxConfig

        # The assignment uses the old spelling of autocast, on every image of every step.
        warnings.filterwarnings("ignore", message=r".*torch\.cuda\.amp\.autocast", category=FutureWarning)
        config = YoloxConfig.get_named_config(f"yolox_{variant}")
        config.num_classes = num_classes
        self.network: Any = config.get_model()  # BatchNorm momentum 0.03, scores that start at 0.01
        # Nearly twice as fast on a CPU as the default layout, and what tensor cores want.
        self.network.to(memory_format=torch.channels_last)
        # About what SimOTA gives an abnormal image at the start; the running mean takes over.
        self.register_buffer("mean_positives", torch.tensor(3.0))
        if pretrained:
            self.first_weights = self._load_coco(variant)

    @property
    def backbone(self) -> nn.Module:
        """The part that was trained as a classifier."""
        return self.network.backbone.backbone

    def forward(self, images: Tensor, targets: list[Target] | None = None) -> dict[str, Tensor] | list[Prediction]:
        """See `vbd.models`."""
        raw = _raw_outputs(self.network, per_pixel(images, lambda values: values * 255, network=self.network))
        with torch.autocast(images.device.type, enabled=False):
            anchors = _anchor_points(raw, self.network.head.strides)
            outputs = torch.cat([level.flatten(2) for level in raw], dim=2).transpose(1, 2).float()
            centres = (outputs[..., :2] + anchors[:, :2]) * anchors[:, 2:]
            sides = outputs[..., 2:4].exp() * anchors[:, 2:]
            boxes_cxcywh, logits = torch.cat([centres, sides], dim=2), outputs[..., 4:]
            if self.training:
                assert targets is not None
                return self._losses(boxes_cxcywh, logits, targets, anchors=anchors)
            boxes_xyxy = torch.cat([centres - sides / 2, centres + sides / 2], dim=2)
            scores = logits[..., :1].sigmoid() * logits[..., 1:].sigmoid()
            height, width = images.shape[-2:]
            return [select(*image, (height, width)) for image in zip(boxes_xyxy, scores, strict=True)]

    def _losses(self, boxes: Tensor, logits: Tensor, targets: list[Target], *, anchors: Tensor) -> dict[str, Tensor]:
        head = self.network.head
        if not (torch.isfinite(boxes).all() and torch.isfinite(logits).all()):
            # The assignment would raise an error of its own; the loop knows what a loss that is no number means.
            return {"loss": (boxes.sum() + logits.sum()) * float("nan")}
        is_positive = torch.zeros(boxes.shape[:2], dtype=torch.bool, device=boxes.device)
        true_boxes, true_classes = [boxes.new_zeros((0, 4))], [boxes.new_zeros((0, head.num_classes))]
        weights = torch.ones_like(logits[..., 0])  # of every anchor: that of the box it learns
        for image, target in enumerate(targets):
            if not len(target["boxes"]):
                continue
            boxes_cxcywh = _to_cxcywh(target["boxes"])
            classes, is_positive[image], ious, matched, _ = head.get_assignments(
                image,
                len(boxes_cxcywh),
                boxes_cxcywh,
                target["labels"].float(),
                boxes[image],
                anchors[None, :, 2],
                anchors[None, :, 0],
                anchors[None, :, 1],
                logits[..., 1:],
                logits[..., :1],
            )
            weights[image, is_positive[image]] = box_weights(target)[matched]
            true_boxes.append(boxes_cxcywh[matched])
            # The class is learned as sure as the box is good.
            true_classes.append(F.one_hot(classes.long(), head.num_classes) * ious[:, None])
        divisor = positives_to_divide_by(is_positive.sum(), len(targets), mean_per_image=self.mean_positives)
        of_positives = weights[is_positive]
        objectness = _cross_entropy(logits[..., 0], is_positive.float(), weights) / divisor
        classes = _cross_entropy(logits[..., 1:][is_positive], torch.cat(true_classes), of_positives[:, None]) / divisor
        box = _BOX_WEIGHT * (head.iou_loss(boxes[is_positive], torch.cat(true_boxes)) * of_positives).sum() / divisor
        parts = {"box": box.detach(), "objectness": objectness.detach(), "class": classes.detach()}
        return {"loss": box + objectness + classes} | parts

    def _load_coco(self, variant: str) -> FirstWeights:
        """COCO weights for everything but the layers whose shape depends on the number of classes."""
        from yolox.models.yolox import HOME, YoloxModule

        name = f"yolox_{variant}"
        url = f"https://github.com/Megvii-BaseDetection/YOLOX/releases/download/0.1.1rc0/{name}.pth"
        with fetching(f"yolox {variant}", url=url, path=HOME / "weights" / f"{name}.pth"):
            coco = YoloxModule.from_pretrained(name).state_dict()
        return load_fitting(self, coco, source=f"COCO weights of YOLOX ({url})")


def _cross_entropy(logits: Tensor, wanted: Tensor, weights: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, wanted, weights, reduction="sum")


def _raw_outputs(network: Any, pixels: Tensor) -> list[Tensor]:
    """For every level (B, 5 + C, h, w): box (4), objectness and class logits, before decoding."""
    head = network.head
    outputs = []
    for level, features in enumerate(network.backbone(pixels)):
        stem = head.stems[level](features)
        box_features = head.reg_convs[level](stem)
        classes = head.cls_preds[level](head.cls_convs[level](stem))
        box, objectness = head.reg_preds[level](box_features), head.obj_preds[level](box_features)
        outputs.append(torch.cat([box, objectness, classes], dim=1))
    return outputs


def _anchor_points(raw: list[Tensor], strides: list[int]) -> Tensor:
    """Column, row and stride in pixels of every anchor point: float32 (A, 3)."""
    points = []
    for level, stride in zip(raw, strides, strict=True):
        rows, columns = (torch.arange(n, device=level.device, dtype=torch.float32) for n in level.shape[-2:])
        row, column = torch.meshgrid(rows, columns, indexing="ij")
        points.append(torch.stack([column, row, torch.full_like(row, stride)], dim=2).flatten(0, 1))
    return torch.cat(points)


def _to_cxcywh(boxes_xyxy: Tensor) -> Tensor:
    low, high = boxes_xyxy[:, :2], boxes_xyxy[:, 2:]
    return torch.cat([(low + high) / 2, high - low], dim=1)
