"""Which weights are trained, how fast, and with what decay."""

import math
from collections.abc import Iterator
from typing import Any, assert_never

import torch
from torch import nn

from vbd.config import TrainConfig
from vbd.config.phases import rate_at


def learning_rate_at(step: int, config: TrainConfig) -> float:
    """Linear warm-up, then half a cosine down to 1 % of the rate (Loshchilov and Hutter 2017, without restarts).

    A phase of the config's schedule multiplies the whole.
    """
    peak = config.learning_rate * rate_at(step, config)
    if step < config.warmup_steps:
        return peak * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The rate of a step in every group, times the group's share of it."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("share", 1.0)  # older checkpoints have one share


def train_mode(model: nn.Module, detector: Any, config: TrainConfig) -> None:
    """Training mode for `model`, the detector or what is wrapped around it, but not for a frozen backbone."""
    model.train()
    if config.backbone_rate == 0:
        detector.backbone.eval()


def build_optimizer(detector: Any, config: TrainConfig) -> torch.optim.Optimizer:
    """An optimiser of the weights that are not frozen; a group's `share` is its part of the learning rate.

    Weights of layers decay; biases, scalars and whatever belongs to a normalisation do not.
    """
    groups = [
        {
            "params": [
                p for p, decays in _weights_of(detector, config, in_backbone=in_backbone) if decays == has_decay
            ],
            "weight_decay": config.weight_decay if has_decay else 0.0,
            "share": config.backbone_rate if in_backbone else 1.0,
        }
        for in_backbone in (False, True)
        for has_decay in (True, False)
    ]
    groups = [group for group in groups if group["params"]]
    # One kernel for all weights, without Python for each of them or memory beside the state.
    match config.optimizer:
        case "adamw":
            return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
        case "sgd":
            return torch.optim.SGD(groups, lr=config.learning_rate, momentum=0.9, nesterov=True, fused=True)
        case _:
            assert_never(config.optimizer)


def _weights_of(detector: Any, config: TrainConfig, *, in_backbone: bool) -> Iterator[tuple[nn.Parameter, bool]]:
    """Trained weights of the backbone or of the rest, and whether each decays; without a rate of its own all are the rest."""
    backbone = set() if config.backbone_rate == 1 else {id(p) for p in detector.backbone.parameters()}
    seen: set[int] = set()
    for module in detector.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and id(parameter) not in seen and (id(parameter) in backbone) == in_backbone:
                seen.add(id(parameter))  # layers may share weights
                yield parameter, parameter.ndim > 1 and name != "bias" and not _is_norm(module)


def _is_norm(module: nn.Module) -> bool:
    """Whether a module normalises: torch's own, and those of libraries, which derive from them or are named like them."""
    return any("Norm" in kind.__name__ for kind in type(module).__mro__)


def count_parameters(detector: nn.Module) -> tuple[int, int]:
    """All, and those that are trained."""
    parameters = list(detector.parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)
