"""EfficientDet (Tan et al., 2020, arXiv:1911.09070) from the package effdet.

The library wants normalised pixels, boxes as `yxyx` and classes from 1. Its network and its anchors are made for one size
of image: the layers that stretch a level are told the size of each batch, and anchors are made when a size first comes.
"""

import math
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vbd.config import Anchors
from vbd.models.box_weights import box_weights, by_weight
from vbd.models.dense import positives_to_divide_by, select
from vbd.models.pixels import per_pixel
from vbd.models.weights import FirstWeights, fetch_tensors, load_fitting, timm_url
from vbd.records import Prediction, Target

if TYPE_CHECKING:
    from effdet.anchors import AnchorLabeler

# Mean and deviation of ImageNet over its three channels: a grey picture stays grey.
_PIXEL_MEAN, _PIXEL_STD = 0.449, 0.226
# The library's 0.01 keeps the first weights' statistics for hundreds of steps.
_NORM_MOMENTUM = 0.03
_FINEST_STRIDE = 8  # pixels
_IGNORED = -2  # the library's class of an anchor that counts nothing


class EfficientDet(nn.Module):
    """EfficientDet behind the contract of `vbd.models`."""

    mean_positives: Tensor
    first_weights: FirstWeights | None = None

    def __init__(self, variant: str, *, image_size: int, num_classes: int, anchors: Anchors, pretrained: bool) -> None:
        super().__init__()
        # timm, which effdet is made of, scripts some activations when it is imported.
        warnings.filterwarnings("ignore", message=r".*torch\.jit\.script", category=FutureWarning)
        import effdet

        config = _configured(variant, image_size, anchors)
        self.network: Any = effdet.create_model_from_config(
            config, num_classes=num_classes, pretrained=False, pretrained_backbone=False
        )
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = _NORM_MOMENTUM
        # A third faster on a CPU than the default layout, and what tensor cores want.
        self.network.to(memory_format=torch.channels_last)
        self._stretching = _stretching_layers(self.network)
        self._labelers: dict[tuple[int, int], AnchorLabeler] = {}  # by height and width of the images
        # About what an abnormal image has; the running mean takes over.
        self.register_buffer("mean_positives", torch.tensor(8.0))
        if pretrained:
            self.first_weights = _load_published(self, variant)

    @property
    def backbone(self) -> nn.Module:
        """The part that was trained as a classifier."""
        return self.network.backbone

    def forward(self, images: Tensor, targets: list[Target] | None = None) -> dict[str, Tensor] | list[Prediction]:
        """See `vbd.models`."""
        height, width = images.shape[-2:]
        labeler = self._prepare_for(height, width, images.device)
        pixels = per_pixel(images, lambda values: (values - _PIXEL_MEAN) / _PIXEL_STD, network=self.network)
        class_levels, box_levels = self.network(pixels)
        with torch.autocast(images.device.type, enabled=False):
            class_levels = [level.float() for level in class_levels]
            box_levels = [level.float() for level in box_levels]
            if self.training:
                assert targets is not None
                return self._losses(class_levels, box_levels, targets, labeler)
            from effdet.anchors import decode_box_outputs

            scores = _per_anchor(class_levels, self.network.config.num_classes).sigmoid()
            codes = _per_anchor(box_levels, 4)
            return [
                select(decode_box_outputs(code, labeler.anchors.boxes, output_xyxy=True), score, (height, width))
                for code, score in zip(codes, scores, strict=True)
            ]

    def _prepare_for(self, height: int, width: int, device: torch.device) -> "AnchorLabeler":
        """Fits the network to images of a size; returns the anchors for them, with what assigns boxes to them."""
        from effdet.anchors import AnchorLabeler, Anchors, get_feat_sizes

        config = self.network.config
        sizes = get_feat_sizes((height, width), config.max_level)
        for layer, level in self._stretching:
            layer.size = sizes[level]
        labeler = self._labelers.get((height, width))
        if labeler is None:
            with torch.inference_mode(False):  # training may use what validation has made
                anchors = Anchors(
                    config.min_level,
                    config.max_level,
                    config.num_scales,
                    config.aspect_ratios,
                    config.anchor_scale,
                    (height, width),
                )
                labeler = self._labelers[height, width] = AnchorLabeler(
                    anchors, config.num_classes, match_threshold=0.5
                )
        labeler.anchors.to(device)  # wherever the network has been moved to
        return labeler

    def _losses(
        self, class_levels: list[Tensor], box_levels: list[Tensor], targets: list[Target], labeler: "AnchorLabeler"
    ) -> dict[str, Tensor]:
        # Boxes are numbered instead of named by their class, so that an anchor's class and weight can be looked up.
        matches, box_targets, num_positives = labeler.batch_label_anchors(
            [target["boxes"][:, [1, 0, 3, 2]] for target in targets],
            [torch.arange(1, len(target["boxes"]) + 1, device=target["boxes"].device).float() for target in targets],
            filter_valid=False,
        )
        class_targets = _looked_up(matches, [target["labels"] for target in targets], default=-1)
        weights = _looked_up(matches, [box_weights(target) for target in targets], default=1)
        divisor = positives_to_divide_by(num_positives.sum(), len(targets), mean_per_image=self.mean_positives)
        if any("weights" in target for target in targets):
            class_loss, box_loss = self._weighted_sums(
                class_levels, box_levels, class_targets, box_targets, weights=weights, divisor=divisor
            )
        else:
            class_loss, box_loss = self._sums(class_levels, box_levels, class_targets, box_targets, divisor=divisor)
        box_loss = self.network.config.box_loss_weight * box_loss
        return {"loss": class_loss + box_loss, "class": class_loss.detach(), "box": box_loss.detach()}

    def _sums(
        self,
        class_levels: list[Tensor],
        box_levels: list[Tensor],
        class_targets: list[Tensor],
        box_targets: list[Tensor],
        *,
        divisor: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The library's losses of classes and of boxes, over all levels."""
        from effdet.loss import loss_fn

        config = self.network.config
        _, class_loss, box_loss = loss_fn(
            class_levels,
            box_levels,
            class_targets,
            box_targets,
            divisor - 1,  # the library adds one
            num_classes=config.num_classes,
            alpha=config.alpha,
            gamma=config.gamma,
            delta=config.delta,
            box_loss_weight=config.box_loss_weight,
        )
        return class_loss, box_loss

    def _weighted_sums(
        self,
        class_levels: list[Tensor],
        box_levels: list[Tensor],
        class_targets: list[Tensor],
        box_targets: list[Tensor],
        *,
        weights: list[Tensor],
        divisor: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """As `_sums`, but an anchor counts as much as the box it learns.

        All anchors of weight 1 (all that learn no box are) at once, then the few of each other weight, as if they were
        a level of one column.
        """
        is_one = [level == 1 for level in weights]
        class_loss, box_loss = self._sums(
            class_levels,
            box_levels,
            [level.where(one, _IGNORED) for level, one in zip(class_targets, is_one, strict=True)],
            [
                level.where(one.repeat_interleave(4, dim=-1), 0)  # the library takes an offset of 0 for no box
                for level, one in zip(box_targets, is_one, strict=True)
            ],
            divisor=divisor,
        )
        logits, codes = _per_anchor(class_levels, self.network.config.num_classes), _per_anchor(box_levels, 4)
        classes = torch.cat([level.flatten(1) for level in class_targets], dim=1)
        boxes = torch.cat([level.reshape(len(level), -1, 4) for level in box_targets], dim=1)
        for weight, chosen in by_weight(torch.cat([level.flatten(1) for level in weights], dim=1)):
            if weight == 1:
                continue
            of_class, of_box = self._sums(
                [logits[chosen].T[None, :, :, None]],
                [codes[chosen].T[None, :, :, None]],
                [classes[chosen][None, :, None, None]],
                [boxes[chosen][None, :, None]],
                divisor=divisor,
            )
            class_loss, box_loss = class_loss + weight * of_class, box_loss + weight * of_box
        return class_loss, box_loss


def anchor_scale(image_size: int) -> float:
    """Side of the smallest anchor in strides of 8 pixels: 4 % of the image, a median nodule, but at least one stride.

    The library's 4 strides are made for 512 pixels and COCO; at 128 pixels they are a quarter of the image.
    """
    return max(1.0, 0.04 * image_size / _FINEST_STRIDE)


def _configured(variant: str, image_size: int, anchors: Anchors) -> Any:
    """The library's config of a variant, with our anchors."""
    import effdet

    kind, size = ("", variant.removeprefix("torch_")) if variant.startswith("torch_") else ("tf_", variant)
    config = effdet.get_efficientdet_config(f"{kind}efficientdet_{size}")
    # Only says which levels are stretched: here each is half of the one before it.
    config.image_size = (2 ** (config.max_level + 1),) * 2
    config.anchor_scale = anchors.smallest * image_size / _FINEST_STRIDE or anchor_scale(image_size)
    config.num_scales = anchors.per_level or config.num_scales
    if anchors.ratios:  # height over width; the library wants factors of width and height
        config.aspect_ratios = [(1 / math.sqrt(ratio), math.sqrt(ratio)) for ratio in anchors.ratios]
    return config


def _stretching_layers(network: Any) -> list[tuple[Any, int]]:
    """The layers whose output has a fixed size, and the level whose size it is."""
    from effdet.anchors import get_feat_sizes
    from effdet.efficientdet import Interpolate2d

    sizes = get_feat_sizes(network.config.image_size, network.config.max_level)
    layers = [module for module in network.modules() if isinstance(module, Interpolate2d)]
    return [(layer, sizes.index(layer.size)) for layer in layers]


def _load_published(detector: EfficientDet, variant: str) -> FirstWeights:
    """COCO weights; where the library has none, ImageNet weights of the backbone."""
    config = detector.network.config
    url, file = config.url, config.url.rsplit("/", 1)[-1]
    source = f"COCO weights of effdet ({url})"
    if not url:
        url, file = timm_url(config.backbone_name)
        source = f"ImageNet weights of timm ({url})"
    tensors = fetch_tensors(f"efficientdet {variant}", url=url, file=file)
    return load_fitting(detector, tensors, source=source)


def _per_anchor(levels: list[Tensor], channels: int) -> Tensor:
    """Levels (B, anchors * channels, h, w) to (B, A, channels), in the order of the anchors."""
    return torch.cat([level.permute(0, 2, 3, 1).reshape(len(level), -1, channels) for level in levels], dim=1)


def _looked_up(matches: list[Tensor], values: list[Tensor], *, default: int) -> list[Tensor]:
    """The values (n,) of the boxes that anchors learn, for levels (B, h, w, anchors) of their numbers; -1 is no box."""
    with_default = [torch.cat([of_image, of_image.new_tensor([default])]) for of_image in values]
    return [torch.stack([table[match] for table, match in zip(with_default, level, strict=True)]) for level in matches]
