"""The networks of torchvision's detectors without weights: backbones, anchors and options; and where their weights are."""

import math
from functools import partial
from typing import Any, Literal, assert_never

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN, resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from vbd.config import Anchors

OneStageFamily = Literal["retinanet", "fcos"]

# Height over width: flat pleural boxes, and tall ones.
_ASPECT_RATIOS = (0.5, 1.0, 2.0)
# Sides of the smallest and largest anchor as a share of the image: a nodule, a heart.
_SMALLEST, _LARGEST = 1 / 32, 1 / 2
# torchvision's names of the detectors that it has COCO weights for.
_COCO = {
    ("faster_rcnn", "mobilenet_v3_large_320"): "fasterrcnn_mobilenet_v3_large_320_fpn",
    ("faster_rcnn", "mobilenet_v3_large"): "fasterrcnn_mobilenet_v3_large_fpn",
    ("faster_rcnn", "resnet50"): "fasterrcnn_resnet50_fpn",
    ("faster_rcnn", "resnet50_v2"): "fasterrcnn_resnet50_fpn_v2",
    ("retinanet", "resnet50"): "retinanet_resnet50_fpn",
    ("retinanet", "resnet50_v2"): "retinanet_resnet50_fpn_v2",
    ("fcos", "resnet50"): "fcos_resnet50_fpn",
}


def published_weights(family: str, variant: str) -> models.WeightsEnum:
    """torchvision's COCO weights of a detector; ImageNet's of its backbone where there are none."""
    name = _COCO.get((family, variant))
    return models.get_model_weights(name)["COCO_V1"] if name else models.get_model_weights(variant)["IMAGENET1K_V1"]


def faster_rcnn(variant: str, *, image_size: int, num_classes: int, anchors: Anchors) -> detection.FasterRCNN:
    """Faster R-CNN for `num_classes` labels from 1; 0 is the background."""
    num_outputs = num_classes + 1
    options = _options(image_size)
    if variant.startswith("mobilenet"):
        # The smaller one, for small images and a CPU, has half of torchvision's channels and hidden units.
        channels, hidden = (128, 512) if variant == "mobilenet_v3_large_320" else (256, 1024)
        return detection.FasterRCNN(
            _mobilenet(channels),
            rpn_anchor_generator=anchor_generator(image_size, anchors, levels=4, per_level=2),
            box_head=TwoMLPHead(channels * 7 * 7, hidden),
            box_predictor=FastRCNNPredictor(hidden, num_outputs),
            **options,
        )
    generator = anchor_generator(image_size, anchors, levels=5, per_level=1)
    if variant != "resnet50_v2":
        return detection.FasterRCNN(_resnet(variant), num_outputs, rpn_anchor_generator=generator, **options)
    network = detection.fasterrcnn_resnet50_fpn_v2(
        weights=None, weights_backbone=None, num_classes=num_outputs, **options
    )
    if generator.num_anchors_per_location() != network.rpn.anchor_generator.num_anchors_per_location():
        network.rpn.head = RPNHead(256, generator.num_anchors_per_location()[0], conv_depth=2)
    network.rpn.anchor_generator = generator
    return network


def one_stage(
    family: OneStageFamily, variant: str, *, image_size: int, num_classes: int, anchors: Anchors
) -> detection.RetinaNet | detection.FCOS:
    """RetinaNet (Lin et al., 2017, arXiv:1708.02002) or FCOS (Tian et al., 2019, arXiv:1904.01355), labels from 0."""
    match family:
        case "retinanet":
            return _retinanet(variant, image_size=image_size, num_classes=num_classes, anchors=anchors)
        case "fcos":
            return detection.FCOS(_resnet_p3_to_p7(variant), num_classes)
        case _:
            assert_never(family)


def _retinanet(variant: str, *, image_size: int, num_classes: int, anchors: Anchors) -> detection.RetinaNet:
    generator = anchor_generator(image_size, anchors, levels=5, per_level=3)
    backbone = _resnet_p3_to_p7(variant)
    # torchvision's second recipe has a normalised head and another loss of boxes.
    is_normalised = variant in ("resnet50_v2", "resnet18")
    head = RetinaNetHead(
        backbone.out_channels,
        generator.num_anchors_per_location()[0],
        num_classes,
        norm_layer=partial(nn.GroupNorm, 32) if is_normalised else None,
    )
    head.regression_head._loss_type = "giou" if is_normalised else "l1"
    return detection.RetinaNet(backbone, num_classes, anchor_generator=generator, head=head)


def _resnet(variant: str) -> BackboneWithFPN:
    """A ResNet with a pyramid at strides 4 to 32 (and 64)."""
    return resnet_fpn_backbone(backbone_name=variant, weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5)


def _resnet_p3_to_p7(variant: str) -> BackboneWithFPN:
    """A ResNet with a pyramid at strides 8 to 128.

    The smallest, for small images and a CPU, has half of torchvision's channels and is normalised throughout.
    """
    body = models.get_model(variant.removesuffix("_v2"), weights=None, norm_layer=nn.BatchNorm2d)
    deepest = body.inplanes
    channels = 128 if variant == "resnet18" else 256
    return BackboneWithFPN(
        body,
        {"layer2": "0", "layer3": "1", "layer4": "2"},
        [deepest // 4, deepest // 2, deepest],
        channels,
        extra_blocks=LastLevelP6P7(deepest if variant == "resnet50_v2" else channels, channels),
        norm_layer=nn.BatchNorm2d if variant == "resnet18" else None,
    )


def _mobilenet(channels: int) -> BackboneWithFPN:
    """MobileNetV3 with a pyramid at strides 8, 16 and 32 (and 64).

    torchvision's own detector has two maps of stride 32: at 128 pixels 4 cells a side, too coarse for a nodule.
    """
    layers = {"6": "0", "12": "1", "16": "2"}  # the last layer of each stage
    features = models.mobilenet_v3_large(weights=None).features
    # Learning from random weights needs normalisation throughout (He et al., 2019, arXiv:1811.08883).
    return BackboneWithFPN(features, layers, [40, 112, 960], channels, norm_layer=nn.BatchNorm2d)


def anchor_generator(image_size: int, anchors: Anchors, *, levels: int, per_level: int) -> AnchorGenerator:
    """Anchors whose sides grow evenly from a nodule's to a heart's, some on each level of the pyramid.

    `per_level` sizes, and what else `anchors` leaves open, are this room's choice.
    """
    per_level = anchors.per_level or per_level
    smallest = anchors.smallest or _SMALLEST
    ratios = anchors.ratios or _ASPECT_RATIOS
    count = levels * per_level
    growth = (_LARGEST / smallest) ** (1 / (count - 1))
    sides = [image_size * smallest * growth**step for step in range(count)]
    sizes = tuple(tuple(sides[i * per_level : (i + 1) * per_level]) for i in range(levels))
    generator = AnchorGenerator(sizes, (ratios,) * levels)
    if anchors != Anchors():
        # The library rounds halves of sides to whole pixels, which leaves nothing of a small flat anchor.
        generator.cell_anchors = [_cell_anchors(level, ratios) for level in sizes]
    return generator


def _cell_anchors(sides: tuple[float, ...], ratios: tuple[float, ...]) -> Tensor:
    """Anchors about the origin, xyxy: float32 (ratios * sides, 4), in the library's order."""
    boxes = []
    for ratio in ratios:
        for side in sides:
            width, height = side / math.sqrt(ratio), side * math.sqrt(ratio)
            boxes.append([-width / 2, -height / 2, width / 2, height / 2])
    return torch.tensor(boxes, device="cpu")  # the library moves it to where the features are


def _options(image_size: int) -> dict[str, Any]:
    """Thresholds, and how many proposals and regions are looked at: a quarter for small images, which hold fewer."""
    is_small = image_size <= 256
    proposals = 200 if is_small else 1000
    return {
        "rpn_pre_nms_top_n_train": 2 * proposals,
        "rpn_pre_nms_top_n_test": 2 * proposals,
        "rpn_post_nms_top_n_train": proposals,
        "rpn_post_nms_top_n_test": proposals,
        "rpn_batch_size_per_image": 64 if is_small else 256,
        "box_batch_size_per_image": 32 if is_small else 256,
        # torchvision's 0.7 leaves most findings a single positive anchor; the competition asks for an IoU above 0.4.
        "rpn_fg_iou_thresh": 0.5,
        # A box of 60 pixels covers 7 cells of stride 8: one sample for each of the 7 bins is enough for a small image.
        "box_roi_pool": MultiScaleRoIAlign(["0", "1", "2", "3"], output_size=7, sampling_ratio=1 if is_small else 2),
        "box_score_thresh": 1e-3,
        "box_nms_thresh": 0.5,
        "box_detections_per_img": 100,
    }
