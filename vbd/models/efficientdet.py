"""EfficientDet (Tan et al., 2020, arXiv:1911.09070) from the package effdet.

The library wants normalised pixels, boxes as `yxyx` and classes from 1.
"""

import warnings

import torch
from torch import Tensor, nn

from vbd.models import fetching
from vbd.models.dense import positives_to_divide_by, select
from vbd.records import Prediction, Target

# Mean and deviation of ImageNet over its three channels: a grey picture stays grey.
_PIXEL_MEAN, _PIXEL_STD = 0.449, 0.226
# The library's 0.01 keeps the first weights' statistics for hundreds of steps.
_NORM_MOMENTUM = 0.03


class EfficientDet(nn.Module):
    """EfficientDet behind the contract of `vbd.models`."""

    mean_positives: Tensor

    def __init__(self, variant: str, *, image_size: int, num_classes: int, pretrained: bool) -> None:
        super().__init__()
        # timm, which effdet is made of, scripts some activations when it is imported.
        warnings.filterwarnings("ignore", message=r".*torch\.jit\.script", category=FutureWarning)
        import effdet
        from effdet.anchors import AnchorLabeler, Anchors

        config = effdet.get_efficientdet_config(f"tf_efficientdet_{variant}")
        config.image_size = (image_size, image_size)
        config.anchor_scale = anchor_scale(image_size)
        with fetching(f"efficientdet {variant}", url=config.url, folder=f"{torch.hub.get_dir()}/checkpoints"):
            self.network = effdet.create_model_from_config(
                config, num_classes=num_classes, pretrained=pretrained, pretrained_backbone=False
            )
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = _NORM_MOMENTUM
        # A third faster on a CPU than the default layout, and what tensor cores want.
        self.network.to(memory_format=torch.channels_last)
        anchors = Anchors.from_config(config)
        self.labeler = AnchorLabeler(anchors, num_classes, match_threshold=0.5)
        self.register_buffer("anchors", anchors.boxes, persistent=False)
        # About what an abnormal image has; the running mean takes over.
        self.register_buffer("mean_positives", torch.tensor(8.0))

    def forward(self, images: Tensor, targets: list[Target] | None = None) -> dict[str, Tensor] | list[Prediction]:
        """See `vbd.models`."""
        pixels = ((images - _PIXEL_MEAN) / _PIXEL_STD).contiguous(memory_format=torch.channels_last)
        class_levels, box_levels = self.network(pixels)
        with torch.autocast(images.device.type, enabled=False):
            class_levels = [level.float() for level in class_levels]
            box_levels = [level.float() for level in box_levels]
            if self.training:
                assert targets is not None
                return self._losses(class_levels, box_levels, targets)
            from effdet.anchors import decode_box_outputs

            scores = _per_anchor(class_levels, self.network.config.num_classes).sigmoid()
            codes = _per_anchor(box_levels, 4)
            height, width = images.shape[-2:]
            return [
                select(decode_box_outputs(code, self.anchors, output_xyxy=True), score, (height, width))
                for code, score in zip(codes, scores, strict=True)
            ]

    def _losses(self, class_levels: list[Tensor], box_levels: list[Tensor], targets: list[Target]) -> dict[str, Tensor]:
        from effdet.loss import loss_fn

        self.labeler.anchors.boxes = self.anchors  # wherever the module has been moved to
        boxes_yxyx = [target["boxes"][:, [1, 0, 3, 2]] for target in targets]
        classes = [target["labels"].float() + 1 for target in targets]
        class_targets, box_targets, num_positives = self.labeler.batch_label_anchors(
            boxes_yxyx, classes, filter_valid=False
        )
        divisor = positives_to_divide_by(num_positives.sum(), len(targets), mean_per_image=self.mean_positives)
        config = self.network.config
        loss, class_loss, box_loss = loss_fn(
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
        return {"loss": loss, "class": class_loss.detach(), "box": config.box_loss_weight * box_loss.detach()}


def anchor_scale(image_size: int) -> float:
    """Side of the smallest anchor in strides of 8 pixels: 4 % of the image, a median nodule, but at least one stride.

    The library's 4 strides are made for 512 pixels and COCO; at 128 pixels they are a quarter of the image.
    """
    return max(1.0, 0.04 * image_size / 8)


def _per_anchor(levels: list[Tensor], channels: int) -> Tensor:
    """Levels (B, anchors * channels, h, w) to (B, A, channels), in the order of the anchors."""
    return torch.cat([level.permute(0, 2, 3, 1).reshape(len(level), -1, channels) for level in levels], dim=1)
