"""Short trainings for the tests of the loop, and what they leave behind."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import torch

from vbd.config import VARIANTS, Family, RunOptions, TrainConfig, size_multiple
from vbd.data.batches.make import BatchMaker
from vbd.data.prepared import open_dataset
from vbd.records import Batch
from vbd.training.loop import Ranks, TrainingRun

CPU = RunOptions(device="cpu")
SHORT = TrainConfig(
    steps=4, report_every=2, batch_size=2, warmup_steps=1, policy="E", learning_rate=1e-3, ema_decay=0.9
)


def config_of(family: Family, **fields: Any) -> TrainConfig:
    """Four steps of the smallest detector of a family on images of 64 pixels, or of the fewest that it takes."""
    side = max(64, size_multiple(family))
    return dataclasses.replace(
        SHORT, **({"detector": family, "variant": VARIANTS[family][0], "image_size": side} | fields)
    )


class Reports:
    """Keeps what the loop reports, by step, and stops the run after some reports as a lost machine would."""

    def __init__(self, folder: Path, *, stop_after: int | None = None):
        folder.mkdir(exist_ok=True)
        self.folder, self.stop_after, self.metrics = folder, stop_after, list[dict[str, Any]]()

    def __call__(self, metrics: dict[str, Any], checkpoint: Path | None) -> None:
        assert checkpoint
        self.metrics.append(metrics)
        shutil.move(checkpoint, self.folder / str(metrics["step"]))
        if len(self.metrics) == self.stop_after:
            raise KeyboardInterrupt


def new_run(
    config: TrainConfig, prepared: str, *, options: RunOptions = CPU, ranks: Ranks | None = None, **fields: Any
) -> TrainingRun:
    """A run to step through by hand."""
    return TrainingRun(config, open_dataset(prepared), options=options, ranks=ranks or Ranks(), **fields)


def batch_of(config: TrainConfig, prepared: str, step: int) -> Batch:
    """What a run of `config` sees in a step."""
    return BatchMaker(open_dataset(prepared), config)(step)


def state_of(run: TrainingRun) -> dict[str, torch.Tensor]:
    """A copy of the weights and statistics of a run's detector."""
    return {name: tensor.clone() for name, tensor in run.detector.state_dict().items()}


def assert_same(one: Any, other: Any, where: str = "") -> None:
    """Equal to the last bit, whatever is nested in what."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for number, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{where}/{number}")
    else:
        assert one == other, where
