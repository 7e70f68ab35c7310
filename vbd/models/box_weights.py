"""What each box counts in a loss, with losses of a library that know no weights.

A loss is a sum over anchors or regions, so one over all that weigh the same can be asked for, and scaled.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from vbd.records import Target


def has_weights(targets: list[Target]) -> bool:
    """Whether any box counts otherwise than the others."""
    return any("weights" in target for target in targets)


def box_weights(target: Target) -> Tensor:
    """float32 (n,): ones where the target has none."""
    return target.get("weights", torch.ones_like(target["labels"], dtype=torch.float32))


def sample_weights(target: Target, matches: Tensor) -> Tensor:
    """float32 (A,): the weight of the box that each sample learns; 1 where `matches` (A,) is negative (no box)."""
    weights = torch.ones_like(matches, dtype=torch.float32)
    weights[matches >= 0] = box_weights(target)[matches[matches >= 0]]
    return weights


def by_weight(weights: Tensor) -> Iterator[tuple[float, Tensor]]:
    """Each weight in (A,), and a mask of the samples that have it."""
    for weight in weights.unique().tolist():
        yield weight, weights == weight
