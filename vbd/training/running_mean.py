"""The exponential running mean of a detector's weights, which is what is validated and kept."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from vbd.training.mirror import Mirror


class RunningMean:
    """A second detector, `module`, whose trained weights follow the first's; its batch statistics are the first's.

    Early on the decay is shorter, (1 + n) / (10 + n), so that the random start is soon forgotten (as in TensorFlow's
    ExponentialMovingAverage with `num_updates`). What never changes, frozen weights and their statistics, is shared
    between the two and costs nothing. The lists are made once: a step is three calls, whatever the number of layers.
    """

    def __init__(self, detector: nn.Module, *, decay: float, frozen: nn.Module | None = None) -> None:
        """`frozen` is the part of the detector that is not trained."""
        shared = [] if frozen is None else [*frozen.parameters(), *frozen.buffers()]
        self.module = copy.deepcopy(detector, {id(tensor): tensor for tensor in shared}).eval()
        self.updates = 0
        self._decay = decay
        pairs = list(zip(self.module.parameters(), detector.parameters(), strict=True))
        self._means = [mean.detach() for mean, weight in pairs if mean is not weight]
        self._weights = [weight.detach() for mean, weight in pairs if mean is not weight]
        buffers = zip(self.module.buffers(), detector.buffers(), strict=True)
        self._statistics = Mirror((own, other) for own, other in buffers if own is not other)

    @torch.no_grad()
    def update(self) -> None:
        """Takes up what the detector has become."""
        if self.updates == 0:
            torch._foreach_copy_(self._means, self._weights)
        else:
            n = float(self.updates)
            torch._foreach_lerp_(self._means, self._weights, 1 - min(self._decay, (1 + n) / (10 + n)))
        self._statistics.take()
        self.updates += 1

    def load(self, weights: Mapping[str, Any], *, updates: int) -> None:
        """Goes on from a checkpoint."""
        self.module.load_state_dict(weights)
        self.updates = updates
