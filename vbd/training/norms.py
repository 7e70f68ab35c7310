"""Batch normalisation over the joint batch of all ranks, on a CPU as on a GPU.

torch's own SyncBatchNorm runs on a GPU alone; this one is the same arithmetic on any device.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class _SumOverRanks(torch.autograd.Function):
    """The sum of every rank's tensor; a gradient of that sum is the sum of every rank's gradients."""

    @staticmethod
    def forward(context: Any, tensor: Tensor, group: Any) -> Tensor:
        context.group = group
        total = tensor.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].clone()
        dist.all_reduce(total, group=context.group)
        return total, None


class JointBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d whose mean and variance are those of all ranks' batches together (Peng et al. 2018, MegDet)."""

    group: Any
    act: nn.Module
    drop: nn.Module
    num_batches_tracked: Tensor
    running_mean: Tensor
    running_var: Tensor

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, w); B, h and w may differ between ranks, the number of calls may not."""
        if not self.training:
            return super().forward(features)
        mean, variance, count = self._moments(features.float())
        self._follow(mean.detach(), variance.detach(), count)
        scale = torch.rsqrt(variance + self.eps)
        normalised = (features.float() - mean[:, None, None]) * scale[:, None, None]
        if self.affine:
            normalised = normalised * self.weight[:, None, None] + self.bias[:, None, None]
        return normalised.to(features.dtype)

    def _moments(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and (biased) variance of each channel over all ranks, and of how many values."""
        variance, mean = torch.var_mean(features, dim=(0, 2, 3), correction=0)
        # In float64 the difference of two squares loses nothing.
        mean, variance = mean.double(), variance.double()
        count = features.numel() / features.shape[1]
        sums = torch.cat([mean, variance + mean.square(), mean.new_ones(1)]) * count
        means, squares, total = _SumOverRanks.apply(sums, self.group).split([len(mean), len(mean), 1])
        joint = means / total
        return joint.float(), (squares / total - joint.square()).clamp(min=0).float(), total.detach()

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """The running statistics, with the unbiased variance as in BatchNorm2d."""
        if not self.track_running_stats:
            return
        self.num_batches_tracked.add_(1)
        weight = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        unbiased = variance * (count / (count - 1).clamp(min=1)).float()
        self.running_mean.lerp_(mean, weight)
        self.running_var.lerp_(unbiased, weight)


class _JointBatchNormAct2d(JointBatchNorm2d):
    """The same for timm's BatchNorm2d that drops and activates too."""

    def forward(self, features: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(features)))


def join_batch_norms(model: nn.Module) -> int:
    """Makes every BatchNorm2d of a model take its statistics over all ranks, in place; returns how many.

    All ranks call it. Names, weights and buffers stay as they are, so checkpoints are the same with and without.
    """
    # A group of its own: its sums run between those of gradients, whose order may differ from rank to rank.
    group = dist.new_group()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.__class__ = _JointBatchNormAct2d if hasattr(norm, "act") else JointBatchNorm2d
        norm.__dict__["group"] = group  # no part of the module's state
    return len(norms)
