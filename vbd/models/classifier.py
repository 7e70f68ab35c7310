"""An image classifier of timm's backbones: which findings an image holds, and whether it is normal. It proposes no boxes.

Each of the 14 findings and "normal" is a logit of its own. What a finding is taught is the largest weight of its boxes: with
an `agreement_weight` of 1 the share of the readers who drew it. Positives of rare findings count more, by the square root
of how many negatives there are for each.
"""

from typing import Any

import torch
from torch import Tensor, nn

from vbd.models.box_weights import box_weights
from vbd.models.pixels import per_pixel
from vbd.models.weights import FirstWeights, fetch_tensors, load_fitting, timm_url
from vbd.records import Prediction, Target

# Mean and deviation of ImageNet over its three channels: a grey picture stays grey.
_PIXEL_MEAN, _PIXEL_STD = 0.449, 0.226
# Share of a batch in the running mean of how often each finding comes, and the most that a positive counts.
_MOMENTUM, _MOST = 0.02, 10.0
# About how often a finding comes before anything was seen.
_FIRST_SHARE = 0.1


class Classifier(nn.Module):
    """A timm network behind the contract of `vbd.models`: no boxes, and `no_finding` in each prediction."""

    shares: Tensor
    first_weights: FirstWeights | None = None

    def __init__(self, variant: str, *, num_classes: int, pretrained: bool) -> None:
        super().__init__()
        import timm

        self.network: Any = timm.create_model(variant, pretrained=False, num_classes=0)
        self.head = nn.Linear(self.network.head_hidden_size, num_classes + 1)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("shares", torch.full((num_classes + 1,), _FIRST_SHARE))
        self.to(memory_format=torch.channels_last)
        if pretrained:
            self.first_weights = _load_published(self, variant)

    @property
    def backbone(self) -> nn.Module:
        """All but the last layer."""
        return self.network

    def forward(self, images: Tensor, targets: list[Target] | None = None) -> dict[str, Tensor] | list[Prediction]:
        """See `vbd.models`."""
        pixels = per_pixel(images, lambda values: (values - _PIXEL_MEAN) / _PIXEL_STD, network=self.network)
        logits = self.head(self.network(pixels))
        with torch.autocast(images.device.type, enabled=False):
            logits = logits.float()
            if self.training:
                assert targets is not None
                return self._losses(logits, _soft_targets(targets, num_classes=logits.shape[1] - 1))
            return [_prediction(normal) for normal in logits[:, -1].sigmoid()]

    def _losses(self, logits: Tensor, wanted: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            self.shares += _MOMENTUM * (wanted.mean(0) - self.shares)
            weights = ((1 - self.shares) / self.shares.clamp(min=1e-6)).sqrt().clamp(1, _MOST)
        losses = nn.functional.binary_cross_entropy_with_logits(logits, wanted, pos_weight=weights, reduction="none")
        findings, normal = losses[:, :-1].mean(), losses[:, -1].mean()
        return {"loss": findings + normal, "findings": findings.detach(), "normal": normal.detach()}


def _soft_targets(targets: list[Target], *, num_classes: int) -> Tensor:
    """float32 (B, num_classes + 1): how sure it is that an image holds each finding; in the last column whether it holds none."""
    wanted = torch.zeros((len(targets), num_classes + 1), device=targets[0]["labels"].device)
    for row, target in zip(wanted, targets, strict=True):
        row[:-1].scatter_reduce_(0, target["labels"], box_weights(target), "amax")
        row[-1] = float(len(target["labels"]) == 0)
    return wanted


def _prediction(normal: Tensor) -> Prediction:
    nothing = normal.new_zeros((0,))
    return {
        "boxes": nothing.reshape(0, 4),
        "scores": nothing,
        "labels": nothing.long(),
        "no_finding": normal,
    }


def _load_published(classifier: Classifier, variant: str) -> FirstWeights:
    """timm's weights of ImageNet, without their head."""
    url, file = timm_url(variant)
    tensors = fetch_tensors(f"classifier {variant}", url=url, file=file)
    return load_fitting(classifier, tensors, source=f"ImageNet weights of timm ({url})")
