"""What a detector finds in images of a prepared dataset."""

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from vbd.config import TrainConfig
from vbd.data.batches.make import Images, plain_batches
from vbd.data.prepared import to_detections
from vbd.records import Detections
from vbd.training.precision import autocast


@torch.inference_mode()
def detect(
    model: nn.Module,
    images: Images,
    indices: np.ndarray,
    *,
    batch_size: int,
    device: torch.device,
    config: TrainConfig,
) -> list[Detections]:
    """Detections of some images, in original pixels, in the order of `indices`."""
    model.eval()
    found = []
    for batch, rows in plain_batches(images, indices, batch_size=batch_size):
        with autocast(device, config):
            predictions = model(batch.images.to(device))
        for row, prediction in zip(rows, predictions, strict=True):
            detections = to_detections(
                row["image_id"],
                *(prediction[name].float().cpu().numpy() for name in ("boxes", "scores", "labels")),
                original_hw=(int(row["original_hw"][0]), int(row["original_hw"][1])),
                image_size=images.image_size,
                options=images.dataset.options,
            )
            if "no_finding" in prediction:
                detections = replace(detections, no_finding=prediction["no_finding"].item())
            found.append(detections)
    return found
