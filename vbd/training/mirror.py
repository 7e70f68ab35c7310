"""Copies of many tensors in few calls, whatever the number of layers."""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn


class Mirror:
    """Pairs of equal tensors, of which one side is copied to the other."""

    def __init__(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
        by_type = defaultdict(list)  # a GPU copies those of one type at once
        for ours, theirs in pairs:
            by_type[ours.dtype].append((ours, theirs))
        self._lists = [([ours for ours, _ in some], [theirs for _, theirs in some]) for some in by_type.values()]

    @torch.no_grad()
    def take(self) -> None:
        """Copies theirs to ours."""
        for ours, theirs in self._lists:
            torch._foreach_copy_(ours, theirs)

    @torch.no_grad()
    def give_back(self) -> None:
        """Copies ours to theirs."""
        for ours, theirs in self._lists:
            torch._foreach_copy_(theirs, ours)


def statistics_of(detector: nn.Module) -> list[Tensor]:
    """What forward passes change beside the weights: batch statistics, counters, running normalisers of losses."""
    kept = set(detector.state_dict())  # what is not kept in checkpoints is constant
    return [buffer for name, buffer in detector.named_buffers() if name in kept]
