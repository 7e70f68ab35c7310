"""The checkpoints that predict: checked before any worker starts, and run on batches of images within a worker."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from vbd import storage
from vbd.boxes import hflip
from vbd.config import PrepareConfig, RunOptions, size_multiple
from vbd.data.images.prepare import resize_square
from vbd.data.prepared import to_detections
from vbd.errors import InputError
from vbd.fusion.detections import fuse
from vbd.predict.images import Item, Pixels
from vbd.records import Detections, Prediction
from vbd.training.checkpoint import CheckpointInfo, load_detector, read_info, read_weights
from vbd.training.memory import free_memory, is_memory_error
from vbd.training.precision import autocast, choose_device

if TYPE_CHECKING:
    from torch import Tensor, nn

TestTimeAugmentation = Literal["none", "flip", "scale", "flip_scale"]
# Boxes of several views of an image that overlap more are one finding.
_VIEWS_IOU = 0.5
_SCALES = (1.0, 0.83, 0.67)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was found whole."""

    folder: str
    info: CheckpointInfo
    sha256: str  # of model.pt

    @property
    def pixels(self) -> Pixels:
        """How the images were made that it was trained on."""
        info = self.info
        size = info.config.image_size
        options = PrepareConfig(
            image_size=info.prepared_size or size,
            resize=info.resize,
            image_format=info.image_format,
            channels=info.channels,
        )
        return Pixels(options, size)

    @property
    def title(self) -> str:
        """Which detector it is, in reports."""
        return f"{self.info.config.detector} {self.info.config.variant} {self.sha256[:12]}"

    @property
    def batch_size(self) -> int:
        """Images at a time: those of its validation, whose last digits depend on it."""
        return self.info.micro_batch or self.info.config.batch_size


def open_checkpoint(folder: str, items: Sequence[Item]) -> Checkpoint:
    """A checkpoint, read once to its last byte; raises InputError when it is broken, or when the images are none for it."""
    info = read_info(folder)
    for name, wanted in (("channels", info.channels), ("resize", info.resize)):
        other = next((item[name] for item in items if item[name] not in ("", wanted)), None)
        if other is not None:
            raise InputError(
                f"{folder}: trained on images of --{name} {wanted}, but these were prepared with --{name} {other}; "
                "prepare them again, or give the raw files"
            )
    read_weights(folder, info)
    known = info.files.get("model.pt")
    location = storage.join(folder, "model.pt")
    digest = known.sha256 if known else hashlib.sha256(storage.read_bytes(location)).hexdigest()
    return Checkpoint(folder, info, digest)


@dataclass(frozen=True)
class View:
    """One way to look at an image."""

    side: int  # pixels of the square input
    is_flipped: bool


def views_of(checkpoint: Checkpoint, augmentation: TestTimeAugmentation) -> list[View]:
    """The plain view first. Sides are multiples of what the family takes; scales that come to the same side are one."""
    size, multiple = checkpoint.info.config.image_size, size_multiple(checkpoint.info.config.detector)
    scales = _SCALES if "scale" in augmentation else _SCALES[:1]
    flips = (False, True) if "flip" in augmentation else (False,)
    sides = [max(multiple, round(scale * size / multiple) * multiple) for scale in scales]
    return [View(side, is_flipped) for side in dict.fromkeys(sides) for is_flipped in flips]


class LoadedDetectors:
    """Some detectors in the memory of a worker. When a GPU has no room for all, they take turns on it."""

    def __init__(self, checkpoints: Sequence[Checkpoint], options: RunOptions, augmentation: TestTimeAugmentation):
        """Raises InputError for weights that are none of the detector's, or a device that is not here."""
        import torch

        torch.set_num_threads(options.threads)
        self.device = choose_device(options)
        self.checkpoints = checkpoints
        self._detectors: list[nn.Module] = [load_detector(checkpoint.folder)[0] for checkpoint in checkpoints]
        for detector in self._detectors:
            detector.to(memory_format=torch.channels_last if options.channels_last else torch.contiguous_format)
        self._on_device: set[int] = set()
        self._most = [checkpoint.batch_size for checkpoint in checkpoints]
        self._augmentation = augmentation

    def detect(
        self,
        which: int,
        images: NDArray[np.uint8],
        *,
        image_ids: Sequence[str],
        original_hw: Sequence[tuple[int, int]],
        places: Sequence[int],
    ) -> list[Detections]:
        """What one of the detectors finds in images (n, S, S) or (n, S, S, 3), in pixels of the original images.

        `places` are the images' in their part: a batch ends at multiples of the batch size whichever images are missing.
        """
        size = self.checkpoints[which].batch_size
        found: list[Detections] = []
        for start in range(0, 1 + max(places, default=-1), size):
            rows = [row for row, place in enumerate(places) if start <= place < start + size]
            if rows:
                found += self._detect_batch(
                    which, images[rows], [image_ids[row] for row in rows], [original_hw[row] for row in rows]
                )
        return found

    def _detect_batch(
        self, which: int, images: NDArray[np.uint8], image_ids: Sequence[str], original_hw: Sequence[tuple[int, int]]
    ) -> list[Detections]:
        options = self.checkpoints[which].pixels.config
        runs = []
        for view in views_of(self.checkpoints[which], self._augmentation):
            predictions = self._forward_within_memory(which, _seen(images, view))
            runs.append(
                [
                    _detections(prediction, view, image_id, original_hw=hw, options=options)
                    for prediction, image_id, hw in zip(predictions, image_ids, original_hw, strict=True)
                ]
            )
        if len(runs) == 1:
            return runs[0]
        return [fuse(views, [1.0] * len(views), iou_threshold=_VIEWS_IOU) for views in zip(*runs, strict=True)]

    def _forward_within_memory(self, which: int, images: NDArray[np.uint8]) -> list[Prediction]:
        """Without memory for a batch the other detectors leave the device, and then it is halved, for all that follow too."""
        found: list[Prediction] = []
        while len(found) < len(images):
            batch = images[len(found) : len(found) + self._most[which]]
            try:
                found += self._forward(which, batch)
            except RuntimeError as error:
                if not is_memory_error(error):
                    raise
            else:
                continue
            self._make_room(which, len(batch))
        return found

    def _make_room(self, which: int, batch_size: int) -> None:
        others = self._on_device - {which}
        if others and self.device.type != "cpu":
            for other in others:
                self._detectors[other].to("cpu")
            self._on_device -= others
        elif batch_size > 1:
            self._most[which] = batch_size // 2
        else:
            config = self.checkpoints[which].info.config
            raise InputError(
                f"{self.checkpoints[which].folder}: no memory on {self.device} for one image of {config.image_size} pixels "
                f"through {config.detector} {config.variant}; use a larger device, or --device cpu"
            )
        free_memory()

    def _forward(self, which: int, images: NDArray[np.uint8]) -> list[Prediction]:
        import torch

        detector = self._detectors[which]
        self._on_device.add(which)
        detector.to(self.device)
        with torch.inference_mode(), autocast(self.device, self.checkpoints[which].info.config):
            predictions: list[Prediction] = detector(_as_input(images).to(self.device))
        return predictions


def _seen(images: NDArray[np.uint8], view: View) -> NDArray[np.uint8]:
    """Images (n, S, S) or (n, S, S, 3) as a view shows them."""
    sized = images if images.shape[1] == view.side else np.stack([resize_square(image, view.side) for image in images])
    return sized[:, :, ::-1] if view.is_flipped else sized


def _as_input(images: NDArray[np.uint8]) -> "Tensor":
    """float32 (n, 3, S, S), 0..1, as `vbd.data.batches.make.collate` makes them."""
    import torch

    pixels = torch.from_numpy(np.ascontiguousarray(images)).float().div_(255)
    return pixels[:, None].expand(-1, 3, -1, -1) if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)


def _detections(
    prediction: Prediction, view: View, image_id: str, *, original_hw: tuple[int, int], options: PrepareConfig
) -> Detections:
    values: dict[str, Any] = {name: tensor.float().cpu().numpy() for name, tensor in dict(prediction).items()}  # type: ignore[attr-defined]
    boxes = hflip(values["boxes"], view.side) if view.is_flipped else values["boxes"]
    found = to_detections(
        image_id,
        boxes,
        values["scores"],
        values["labels"],
        original_hw=original_hw,
        image_size=view.side,
        options=options,
    )
    normal = values.get("no_finding")
    if normal is None:
        return found
    return Detections(image_id, found.boxes, found.scores, found.labels, float(normal))
