"""Where and in what arithmetic a detector runs, and how a number that is none is told to every rank."""

import contextlib
from collections.abc import Sequence
from typing import Any, assert_never

import torch
from torch import Tensor

from vbd.config import RunOptions, TrainConfig
from vbd.errors import InputError


def choose_device(options: RunOptions) -> torch.device:
    """The device that `auto` means here; raises InputError when cuda is asked for and absent."""
    match options.device:
        case "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        case "cuda":
            if not torch.cuda.is_available():
                raise InputError("device cuda: this process sees no GPU; use --device cpu, or ask for one per trial")
            return torch.device("cuda")
        case "cpu":
            return torch.device("cpu")
        case _:
            assert_never(options.device)


def autocast(device: torch.device, config: TrainConfig) -> contextlib.AbstractContextManager[Any]:
    """The arithmetic of the forward pass."""
    match config.precision:
        case "fp32":
            return contextlib.nullcontext()
        case "bf16":
            return torch.autocast(device.type, dtype=torch.bfloat16)
        case "fp16":
            if device.type == "cpu":
                raise InputError("precision fp16 needs a GPU; use bf16 or fp32 on a CPU")
            return torch.autocast(device.type, dtype=torch.float16)
        case _:
            assert_never(config.precision)


def gradient_scaler(device: torch.device, config: TrainConfig) -> torch.amp.GradScaler:
    """Keeps fp16's small gradients from vanishing; does nothing in other arithmetic."""
    return torch.amp.GradScaler(device.type, enabled=config.precision == "fp16" and device.type == "cuda")


def back_off(scaler: torch.amp.GradScaler) -> None:
    """Lowers the scale after a step whose gradient was no number, as torch does where it is the one to see that."""
    scaler.update(scaler.get_scale() * scaler.get_backoff_factor())
    # The good steps in a row, after which the scale grows, are counted anew.
    scaler.load_state_dict(scaler.state_dict() | {"_growth_tracker": 0})


def telling(loss: Tensor, statistics: Sequence[Tensor]) -> Tensor:
    """The loss itself; one whose gradient is no number when the loss or one of the batch statistics is none.

    Gradients are averaged over the ranks, so every rank sees it and all come to one verdict, without asking each other.
    """
    largest = torch.nn.utils.get_total_norm(statistics, float("inf"))
    return loss * (1 + 0 * (loss.detach() + largest))
