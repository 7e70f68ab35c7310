"""A step's batch in parts that fit into memory, and its images at the side of the step."""

from dataclasses import replace
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vbd.config import TrainConfig, size_multiple
from vbd.hashing import stable_hash
from vbd.records import Batch, Target
from vbd.training.microbatches import sides


def deal(batch: Batch, parts: int) -> list[Batch]:
    """Parts of nearly equal size. A batch has its abnormal images first: dealt like cards, every part gets its share."""
    return [
        Batch(
            image_ids=batch.image_ids[first::parts],
            images=batch.images[first::parts],
            targets=batch.targets[first::parts],
        )
        for first in range(parts)
    ]


def side_at(step: int, config: TrainConfig) -> int:
    """Side in pixels of the images of a step: `image_size`, or with `multi_scale` one near it that the detector takes."""
    multiple = size_multiple(config.detector)
    smallest, largest = (side // multiple for side in sides(config))
    rng = np.random.default_rng([config.seed, step, stable_hash("side")])
    return multiple * int(rng.integers(smallest, largest + 1))


def placed(batch: Batch, device: torch.device, *, side: int) -> Batch:
    """The batch on a device, its images and boxes resized to `side` pixels."""
    scale = side / batch.images.shape[-1]
    return replace(
        batch,
        images=_resized(batch.images, device, side=side),
        targets=[_target_on(target, device, scale=scale) for target in batch.targets],
    )


def _resized(images: Tensor, device: torch.device, *, side: int) -> Tensor:
    # The channels of grey images share their memory (stride 0): one of them travels and is resized.
    is_grey = images.stride(1) == 0
    channels = (images[:, :1] if is_grey else images).to(device, non_blocking=True)
    if side != images.shape[-1]:
        channels = F.interpolate(channels, size=(side, side), mode="bilinear", align_corners=False)
    return channels.expand(-1, images.shape[1], -1, -1)


def _target_on(target: Target, device: torch.device, *, scale: float) -> Target:
    moved = {name: cast(Tensor, tensor).to(device, non_blocking=True) for name, tensor in target.items()}
    if scale != 1:
        moved["boxes"] = moved["boxes"] * scale
    return cast(Target, moved)
