"""Faster R-CNN, RetinaNet and FCOS from torchvision.

Of the library's detectors everything is used but their own forward passes, which resize and normalise: images come at
their size. It wants normalised pixels; Faster R-CNN also labels from 1.
"""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import fastrcnn_loss

from vbd.config import Anchors
from vbd.models.box_weights import by_weight, has_weights, sample_weights
from vbd.models.dense import positives_to_divide_by, select
from vbd.models.pixels import per_pixel
from vbd.models.torchvision_networks import OneStageFamily, faster_rcnn, one_stage, published_weights
from vbd.models.weights import FirstWeights, fetching, hub_file, load_fitting
from vbd.records import Prediction, Target

# Mean and deviation of ImageNet over its three channels: a grey picture stays grey.
_PIXEL_MEAN, _PIXEL_STD = 0.449, 0.226
# torchvision's MobileNet has 0.01, which keeps the first weights' statistics for hundreds of steps.
_NORM_MOMENTUM = 0.03
# What the library calls the parts of a loss, and what we do.
_PARTS = {"classification": "class", "bbox_regression": "box", "bbox_ctrness": "centerness"}


class FasterRCNN(nn.Module):
    """Faster R-CNN (Ren et al., 2015, arXiv:1506.01497) with a feature pyramid, behind the contract of `vbd.models`.

    A box's weight counts in the second stage; the first, which proposes regions, takes all boxes alike.
    """

    first_weights: FirstWeights | None = None

    def __init__(self, variant: str, *, image_size: int, num_classes: int, anchors: Anchors, pretrained: bool) -> None:
        super().__init__()
        self.network = faster_rcnn(variant, image_size=image_size, num_classes=num_classes, anchors=anchors)
        # Losses and boxes need float32; the layers before them may run in less.
        predictor = self.network.roi_heads.box_predictor
        self.network.roi_heads.box_predictor = _Float32Predictor(predictor)
        _adapt(self.network)
        if pretrained:
            self.first_weights = _load_published(self, "faster_rcnn", variant)

    @property
    def backbone(self) -> nn.Module:
        """The part that was trained as a classifier."""
        return self.network.backbone.body

    def forward(self, images: Tensor, targets: list[Target] | None = None) -> dict[str, Tensor] | list[Prediction]:
        """See `vbd.models`."""
        if targets is not None:
            targets = [target | {"labels": target["labels"] + 1} for target in targets]
        pixels, sizes = _normalised(images, self.backbone)
        features = {level: value.float() for level, value in self.network.backbone(pixels).items()}
        with torch.autocast(images.device.type, enabled=False):
            proposals, rpn_losses = self.network.rpn(ImageList(pixels, sizes), features, targets)
        if self.training and targets is not None and has_weights(targets):
            roi_losses = self._weighted_losses(features, proposals, sizes, targets)
        else:
            found, roi_losses = self.network.roi_heads(features, proposals, sizes, targets)
            if not self.training:
                return [image | {"labels": image["labels"] - 1} for image in found]
        parts = {
            "rpn_objectness": rpn_losses["loss_objectness"],
            "rpn_box": rpn_losses["loss_rpn_box_reg"],
            "class": roi_losses["loss_classifier"],
            "box": roi_losses["loss_box_reg"],
        }
        return _summed(parts)

    def _weighted_losses(
        self, features: dict[str, Tensor], proposals: list[Tensor], sizes: list[tuple[int, int]], targets: list[Target]
    ) -> dict[str, Tensor]:
        """Losses of the second stage, in which a region counts as much as the box that it learns."""
        heads = self.network.roi_heads
        proposals, matches, labels, deltas = heads.select_training_samples(proposals, targets)
        logits, boxes = heads.box_predictor(heads.box_head(heads.box_roi_pool(features, proposals, sizes)))
        weights = torch.cat(
            [
                sample_weights(target, match.where(label > 0, -1))  # the library matches background with box 0
                for target, match, label in zip(targets, matches, labels, strict=True)
            ]
        )
        flat_labels, flat_deltas = torch.cat(labels), torch.cat(deltas)
        sums = torch.zeros(2, device=logits.device)
        for weight, chosen in by_weight(weights):
            means = fastrcnn_loss(logits[chosen], boxes[chosen], [flat_labels[chosen]], [flat_deltas[chosen]])
            sums = sums + torch.stack(means) * (weight * chosen.sum() / len(weights))
        return {"loss_classifier": sums[0], "loss_box_reg": sums[1]}


class OneStage(nn.Module):
    """RetinaNet and FCOS behind the contract of `vbd.models`."""

    mean_positives: Tensor
    first_weights: FirstWeights | None = None

    def __init__(
        self,
        family: OneStageFamily,
        variant: str,
        *,
        image_size: int,
        num_classes: int,
        anchors: Anchors,
        pretrained: bool,
    ) -> None:
        super().__init__()
        self.network: Any = one_stage(family, variant, image_size=image_size, num_classes=num_classes, anchors=anchors)
        _adapt(self.network)
        # About what an abnormal image has; the running mean takes over.
        self.register_buffer("mean_positives", torch.tensor(8.0))
        if pretrained:
            self.first_weights = _load_published(self, family, variant)

    @property
    def backbone(self) -> nn.Module:
        """The part that was trained as a classifier."""
        return self.network.backbone.body

    def forward(self, images: Tensor, targets: list[Target] | None = None) -> dict[str, Tensor] | list[Prediction]:
        """See `vbd.models`."""
        pixels, sizes = _normalised(images, self.backbone)
        features = list(self.network.backbone(pixels).values())
        outputs = self.network.head(features)
        with torch.autocast(images.device.type, enabled=False):
            outputs = {name: output.float() for name, output in outputs.items()}
            anchors = self.network.anchor_generator(ImageList(pixels, sizes), [level.float() for level in features])
            if not self.training:
                return self._predictions(outputs, anchors[0], sizes[0])
            assert targets is not None
            matches = self._matches(targets, anchors, outputs, [level[0, 0].numel() for level in features])
            return self._losses(targets, anchors, outputs, matches)

    def _predictions(self, outputs: dict[str, Tensor], anchors: Tensor, size: tuple[int, int]) -> list[Prediction]:
        predictions = []
        for image, logits in enumerate(outputs["cls_logits"]):
            scores = logits.sigmoid()
            if "bbox_ctrness" in outputs:
                scores = (scores * outputs["bbox_ctrness"][image].sigmoid()).sqrt()
            codes = outputs["bbox_regression"][image]
            predictions.append(select(_decode(self.network.box_coder, codes, anchors), scores, size))
        return predictions

    def _matches(
        self, targets: list[Target], anchors: list[Tensor], outputs: dict[str, Tensor], level_sizes: list[int]
    ) -> list[Tensor]:
        """For each image, which box each anchor learns: int64 (A,), -1 for none, -2 for neither a box nor none.

        The library assigns and sums in one method, whose last call is the head's loss: asked here with a head that
        answers with what it was given.
        """
        given = SimpleNamespace(compute_loss=lambda targets, outputs, anchors, matches: matches)
        if isinstance(self.network, detection.FCOS):
            asking: Any = SimpleNamespace(head=given, center_sampling_radius=self.network.center_sampling_radius)
            return detection.FCOS.compute_loss(asking, targets, outputs, anchors, level_sizes)
        asking = SimpleNamespace(head=given, proposal_matcher=self.network.proposal_matcher)
        return detection.RetinaNet.compute_loss(asking, targets, outputs, anchors)

    def _losses(
        self, targets: list[Target], anchors: list[Tensor], outputs: dict[str, Tensor], matches: list[Tensor]
    ) -> dict[str, Tensor]:
        """The head's losses, undone of its own division, over the positives of the batch.

        RetinaNet's head divides within an image, by at least 1: a normal image would weigh as much as all anchors of
        an abnormal one.
        """
        positives = torch.stack([(match >= 0).sum() for match in matches]).sum()
        divisor = positives_to_divide_by(positives, len(targets), mean_per_image=self.mean_positives)
        sums: dict[str, Tensor] = {}
        for image, (target, match) in enumerate(zip(targets, matches, strict=True)):
            of_image = {name: output[image] for name, output in outputs.items()}
            for name, part in self._weighted_sums(target, anchors[image], of_image, match).items():
                sums[name] = sums[name] + part if name in sums else part
        return _summed({_PARTS[name]: part / divisor for name, part in sums.items()})

    def _weighted_sums(
        self, target: Target, anchors: Tensor, outputs: dict[str, Tensor], match: Tensor
    ) -> dict[str, Tensor]:
        """The head's losses of one image, summed over anchors that count as much as the box they learn."""
        if "weights" not in target:
            return self._sums(target, anchors, outputs, match)
        sums: dict[str, Tensor] = {}
        for weight, chosen in by_weight(sample_weights(target, match)):
            some = {name: output[chosen] for name, output in outputs.items()}
            for name, part in self._sums(target, anchors[chosen], some, match[chosen]).items():
                sums[name] = sums[name] + weight * part if name in sums else weight * part
        return sums

    def _sums(self, target: Target, anchors: Tensor, outputs: dict[str, Tensor], match: Tensor) -> dict[str, Tensor]:
        of_one = {name: output[None] for name, output in outputs.items()}
        means = self.network.head.compute_loss([target], of_one, [anchors], [match])
        divided_by = (match >= 0).sum().clamp(min=1)
        return {name: mean * divided_by for name, mean in means.items()}


class _Float32Predictor(nn.Module):
    """The last layer, in float32 whatever the precision of the layers before it."""

    def __init__(self, predictor: nn.Module) -> None:
        super().__init__()
        self.predictor = predictor

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(features.device.type, enabled=False):
            return self.predictor(features.float())


def _adapt(network: nn.Module) -> None:
    # Faster on a CPU than the default layout, and what tensor cores want.
    network.backbone.to(memory_format=torch.channels_last)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = _NORM_MOMENTUM


def _normalised(images: Tensor, backbone: nn.Module) -> tuple[Tensor, list[tuple[int, int]]]:
    """Pixels as ImageNet's detectors want them, and the size of each image."""
    pixels = per_pixel(images, lambda values: (values - _PIXEL_MEAN) / _PIXEL_STD, network=backbone)
    height, width = images.shape[-2:]
    return pixels, [(height, width)] * len(images)


def _decode(coder: Any, codes: Tensor, anchors: Tensor) -> Tensor:
    """Boxes xyxy (A, 4); the library names its two coders' methods differently."""
    return coder.decode_single(codes, anchors) if hasattr(coder, "decode_single") else coder.decode(codes, anchors)


def _summed(parts: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"loss": torch.stack(list(parts.values())).sum()} | {name: part.detach() for name, part in parts.items()}


def _load_published(detector: nn.Module, family: str, variant: str) -> FirstWeights:
    weights = published_weights(family, variant)
    with fetching(f"{family} {variant}", url=weights.url, path=hub_file(weights.url.rsplit("/", 1)[1])):
        tensors = weights.get_state_dict(progress=False, check_hash=True, map_location="cpu", weights_only=True)
    data = "COCO" if "COCO" in weights.name else "ImageNet"
    return load_fitting(detector, tensors, source=f"{data} weights of torchvision ({weights.url})")
