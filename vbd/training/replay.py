"""What a checkpoint finds on its validation fold, computed once more as the loop computed it."""

import math

import numpy as np
import torch

from vbd.config import Device, RunOptions
from vbd.data.batches.make import Images
from vbd.data.prepared import PreparedDataset
from vbd.errors import InputError
from vbd.records import Detections
from vbd.training.checkpoint import load_detector
from vbd.training.precision import choose_device
from vbd.training.validation import detect


def device_to_replay(device: Device, *, trained_on: str) -> torch.device:
    """Where to compute again what was computed on `trained_on`, such as `cuda:1`: `auto` is a device of that kind, if here."""
    return choose_device(RunOptions(device="cpu" if device == "auto" and not trained_on.startswith("cuda") else device))


def detect_again(folder: str, dataset: PreparedDataset, *, device: torch.device, workers: int = 1) -> list[Detections]:
    """The detections of a checkpoint on the fold that it never trained on, by image id, of the weights that are kept.

    They are the loop's to the last bit where device, libraries and run options (`RunOptions()`) are the same: in its
    precision, its layout, on one thread, as many images at a time, the fold dealt to as many `workers`. Raises InputError
    for a checkpoint that is broken, or of another dataset.
    """
    detector, info = load_detector(folder)
    if info.dataset != dataset.fingerprint:
        raise InputError(f"{folder}: trained on dataset {info.dataset}, this is {dataset.fingerprint}")
    options = RunOptions()
    detector.to(device)
    detector.to(memory_format=torch.channels_last if options.channels_last else torch.contiguous_format)
    images = Images(dataset, info.config.fold, image_size=info.config.image_size)
    batch_size = info.micro_batch or math.ceil(info.config.batch_size / workers)
    threads = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    try:
        found = [
            detections
            for rank in range(workers)
            for detections in detect(
                detector,
                images,
                np.arange(rank, len(images), workers),
                batch_size=batch_size,
                device=device,
                config=info.config,
            )
        ]
    finally:
        torch.set_num_threads(threads)
    return sorted(found, key=lambda item: item.image_id)
