"""Checkpoints of small detectors with random weights, which find something in every image all the same."""

from pathlib import Path
from typing import Any

import torch

from vbd.config import VARIANTS, Family, TrainConfig
from vbd.data.prepared import open_dataset
from vbd.models import detector_of
from vbd.training.checkpoint import write_checkpoint


def write_random(folder: Path, dataset: str, family: Family, *, image_size: int, seed: int = 0, **fields: Any) -> str:
    """The smallest detector of a family, as if trained on a dataset for a step."""
    config = TrainConfig(detector=family, variant=VARIANTS[family][0], image_size=image_size, **fields)
    torch.manual_seed(seed)
    detector: Any = detector_of(config, with_first_weights=False)
    if family == "yolox":
        with torch.no_grad():
            for head in (*detector.network.head.obj_preds, *detector.network.head.cls_preds):
                head.bias.fill_(-2.0)
    write_checkpoint(
        folder,
        config=config,
        dataset=open_dataset(dataset),
        weights=detector.state_dict(),
        state={},
        step=1,
        metrics={},
    )
    return str(folder)
