"""From images as they come to what a network wants."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def per_pixel(images: Tensor, change: Callable[[Tensor], Tensor], *, network: nn.Module) -> Tensor:
    """`change` of every pixel of (B, 3, S, S), in the layout of the network's weights; written once at full size.

    The three channels of grey images share their memory (stride 0): one is changed, the others follow it.
    """
    channels = images[:, :1] if images.stride(1) == 0 else images
    return change(channels).expand_as(images).contiguous(memory_format=_layout(network))


def _layout(network: nn.Module) -> torch.memory_format:
    """That of the first layer, a convolution."""
    is_last = next(network.parameters()).is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if is_last else torch.contiguous_format
