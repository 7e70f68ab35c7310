"""Faster R-CNN (Ren et al., 2015, arXiv:1506.01497) with a feature pyramid, from torchvision.

The library wants normalised pixels and labels from 1. Its resizing is left out: images come at their size.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import detection, mobilenet_v3_large
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import MultiScaleRoIAlign

from vbd.models import fetching
from vbd.records import Prediction, Target

# Mean and deviation of ImageNet over its three channels: a grey picture stays grey.
_PIXEL_MEAN, _PIXEL_STD = 0.449, 0.226
# torchvision's MobileNet has 0.01, which keeps the first weights' statistics for hundreds of steps.
_NORM_MOMENTUM = 0.03
# Height over width: flat pleural boxes, and tall ones.
_ASPECT_RATIOS = (0.5, 1.0, 2.0)
# Sides of the smallest and largest anchor as a share of the image: a nodule, a heart.
_SMALLEST, _LARGEST = 1 / 32, 1 / 2


class FasterRCNN(nn.Module):
    """Faster R-CNN behind the contract of `vbd.models`."""

    def __init__(self, variant: str, *, image_size: int, num_classes: int, pretrained: bool) -> None:
        super().__init__()
        self.network = _build(variant, image_size, num_classes + 1)
        if pretrained:
            _load_coco(self.network, variant)
        # Losses and boxes need float32; the layers before them may run in less.
        predictor = self.network.roi_heads.box_predictor
        self.network.roi_heads.box_predictor = _Float32Predictor(predictor)
        # Faster on a CPU than the default layout, and what tensor cores want.
        self.network.backbone.to(memory_format=torch.channels_last)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = _NORM_MOMENTUM

    def forward(self, images: Tensor, targets: list[Target] | None = None) -> dict[str, Tensor] | list[Prediction]:
        """See `vbd.models`."""
        if targets is not None:
            targets = [{"boxes": target["boxes"], "labels": target["labels"] + 1} for target in targets]
        normalised = ((images - _PIXEL_MEAN) / _PIXEL_STD).contiguous(memory_format=torch.channels_last)
        height, width = images.shape[-2:]
        sizes = [(height, width)] * len(images)
        features = {level: value.float() for level, value in self.network.backbone(normalised).items()}
        with torch.autocast(images.device.type, enabled=False):
            proposals, rpn_losses = self.network.rpn(ImageList(normalised, sizes), features, targets)
        found, roi_losses = self.network.roi_heads(features, proposals, sizes, targets)
        if not self.training:
            return [image | {"labels": image["labels"] - 1} for image in found]
        parts = {
            "rpn_objectness": rpn_losses["loss_objectness"],
            "rpn_box": rpn_losses["loss_rpn_box_reg"],
            "class": roi_losses["loss_classifier"],
            "box": roi_losses["loss_box_reg"],
        }
        return {"loss": torch.stack(list(parts.values())).sum()} | {name: part.detach() for name, part in parts.items()}


class _Float32Predictor(nn.Module):
    """The last layer, in float32 whatever the precision of the layers before it."""

    def __init__(self, predictor: nn.Module) -> None:
        super().__init__()
        self.predictor = predictor

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(features.device.type, enabled=False):
            return self.predictor(features.float())


def _build(variant: str, image_size: int, num_outputs: int) -> detection.FasterRCNN:
    """The network without weights; `num_outputs` counts the background."""
    options = _options(image_size)
    if variant == "resnet50":
        return detection.fasterrcnn_resnet50_fpn(
            weights=None,
            weights_backbone=None,
            num_classes=num_outputs,
            rpn_anchor_generator=_anchors(image_size, levels=5, sizes_per_level=1),
            **options,
        )
    if variant == "resnet50_v2":
        network = detection.fasterrcnn_resnet50_fpn_v2(
            weights=None, weights_backbone=None, num_classes=num_outputs, **options
        )
        network.rpn.anchor_generator = _anchors(image_size, levels=5, sizes_per_level=1)
        return network
    # The smaller one, for small images and a CPU, has half of torchvision's channels and hidden units.
    channels, hidden = (128, 512) if variant == "mobilenet_v3_large_320" else (256, 1024)
    return detection.FasterRCNN(
        _mobilenet(channels),
        rpn_anchor_generator=_anchors(image_size, levels=4, sizes_per_level=2),
        box_head=TwoMLPHead(channels * 7 * 7, hidden),
        box_predictor=FastRCNNPredictor(hidden, num_outputs),
        **options,
    )


def _mobilenet(channels: int) -> BackboneWithFPN:
    """MobileNetV3 with a pyramid at strides 8, 16 and 32 (and 64).

    torchvision's own detector has two maps of stride 32: at 128 pixels 4 cells a side, too coarse for a nodule.
    """
    layers = {"6": "0", "12": "1", "16": "2"}  # the last layer of each stage
    features = mobilenet_v3_large(weights=None).features
    # Learning from random weights needs normalisation throughout (He et al., 2019, arXiv:1811.08883).
    return BackboneWithFPN(features, layers, [40, 112, 960], channels, norm_layer=nn.BatchNorm2d)


def _anchors(image_size: int, *, levels: int, sizes_per_level: int) -> AnchorGenerator:
    """Anchors whose sides grow evenly from a nodule's to a heart's, some on each level of the pyramid."""
    count = levels * sizes_per_level
    growth = (_LARGEST / _SMALLEST) ** (1 / (count - 1))
    sides = [image_size * _SMALLEST * growth**step for step in range(count)]
    sizes = tuple(tuple(sides[i * sizes_per_level : (i + 1) * sizes_per_level]) for i in range(levels))
    return AnchorGenerator(sizes, (_ASPECT_RATIOS,) * levels)


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


def _load_coco(network: nn.Module, variant: str) -> None:
    """COCO weights for every layer of the same name and shape: all but the last of ResNet-50.

    Of MobileNet, whose pyramid is another one, mainly the backbone.
    """
    weights = {
        "mobilenet_v3_large_320": detection.FasterRCNN_MobileNet_V3_Large_320_FPN_Weights.COCO_V1,
        "mobilenet_v3_large": detection.FasterRCNN_MobileNet_V3_Large_FPN_Weights.COCO_V1,
        "resnet50": detection.FasterRCNN_ResNet50_FPN_Weights.COCO_V1,
        "resnet50_v2": detection.FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1,
    }[variant]
    with fetching(f"faster_rcnn {variant}", url=weights.url, folder=f"{torch.hub.get_dir()}/checkpoints"):
        coco = weights.get_state_dict(progress=False, check_hash=True)
    own = network.state_dict()
    fits = {key: value for key, value in coco.items() if key in own and value.shape == own[key].shape}
    network.load_state_dict(own | fits)
