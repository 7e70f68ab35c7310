"""The weights that a training ends with when nothing befalls it."""

from pathlib import Path
from typing import Any

import torch

from vbd.config import RunOptions
from vbd.data.prepared import open_dataset
from vbd.models.weights import load_tensors
from vbd.training.folds.plan import read_plan
from vbd.training.loop import train


def undisturbed_weights(data: str, output: str) -> dict[str, torch.Tensor]:
    """Of the first fold of `jobs/train.py --output`, trained in this process."""
    last: dict[str, torch.Tensor] = {}

    def keep(_: dict[str, Any], folder: Path | None) -> None:
        last.update(load_tensors(f"{folder}/model.pt"))

    train(read_plan(output).config_of("yolox-1", 0), open_dataset(data), options=RunOptions(device="cpu"), report=keep)
    return last


def are_equal(some: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> bool:
    """To the last bit."""
    return some.keys() == others.keys() and all(torch.equal(some[name], others[name]) for name in some)
