"""Distributed inference with Ray Data: every image is decoded once for all detectors, on whatever workers there are."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vbd import storage
from vbd.boxes import hflip
from vbd.config import PrepareConfig, RunOptions
from vbd.data.images import decode_image, prepare_image, resize_square, suffix_of
from vbd.data.prepared import Part, PreparedDataset, image_sizes, open_dataset, parse_part, to_detections
from vbd.data.sources_tables import IMAGE_SUFFIXES
from vbd.ensemble.fusion import fuse
from vbd.errors import InputError
from vbd.records import Detections, detections_to_table
from vbd.rejects import REJECT_COLUMNS
from vbd.training.checkpoint import CheckpointInfo, load_detector, load_tensors, read_info
from vbd.training.run_resources import check_gpus

TestTimeAugmentation = Literal["none", "flip"]
# Boxes of an image and of its mirror image that overlap more are one finding.
_MIRROR_IOU = 0.5


@dataclass(frozen=True)
class Predictions:
    """What each checkpoint found in each image that could be read, by image id; and the images that could not."""

    by_checkpoint: dict[str, list[Detections]]
    rejects: list[dict[str, Any]]  # REJECT_COLUMNS


def images_of_part(dataset: PreparedDataset, part: Part) -> list[dict[str, Any]]:
    """The images of a prepared dataset, as items for `predict`."""
    suffix = suffix_of(dataset.options.image_format)
    return [
        {
            "image_id": image_id,
            "path": storage.join(dataset.location, "images", f"{image_id}{suffix}"),
            "height": hw[0],
            "width": hw[1],
            "channels": dataset.options.channels,
            "resize": dataset.options.resize,
        }
        for image_id, hw in image_sizes(dataset, part).items()
    ]


def images_in_folder(folder: str) -> list[dict[str, Any]]:
    """The DICOM, PNG and JPEG files of a folder, as items for `predict`; raises InputError when there are none."""
    names = [name for name in storage.list_names(folder) if name.lower().endswith(IMAGE_SUFFIXES)]
    if not names:
        raise InputError(f"{folder}: no images here; want files that end in {', '.join(IMAGE_SUFFIXES)}")
    stems = [Path(name).stem for name in names]
    twice = next((stem for stem in stems if stems.count(stem) > 1), None)
    if twice is not None:
        raise InputError(f"{folder}: two images are called {twice}; their detections could not be told apart")
    root = storage.absolute(folder)
    raw = {"height": 0, "width": 0, "channels": "", "resize": ""}
    return [{"image_id": Path(name).stem, "path": storage.join(root, name)} | raw for name in names]


def predict(
    checkpoints: Sequence[str],
    images: Sequence[dict[str, Any]],
    *,
    options: RunOptions,
    augmentation: TestTimeAugmentation = "none",
    workers: int | None = None,
) -> Predictions:
    """Runs every checkpoint over every image; needs a Ray connection.

    An item whose height is 0 is a raw file; otherwise it is a prepared image and height and width are the original's.
    Raises InputError when a checkpoint was trained on images that were prepared in another way.
    The result is sorted by image id and does not depend on the number of workers.
    """
    import ray

    for checkpoint in checkpoints:  # a broken one is told here, before workers start
        _check_preparation(checkpoint, read_info(checkpoint), images)
        load_tensors(storage.join(checkpoint, "model.pt"))
    check_gpus(options.device == "cuda")
    resources = ray.cluster_resources()
    use_gpu = options.device == "cuda" or (options.device == "auto" and resources.get("GPU", 0) >= 1)
    units = int(resources.get("GPU" if use_gpu else "CPU", 1))
    found = (
        ray.data.from_items(
            sorted(images, key=lambda item: item["image_id"]), override_num_blocks=max(1, len(images) // 32)
        )
        .map_batches(
            _Predictor,
            fn_constructor_args=(list(checkpoints), options, augmentation),
            compute=ray.data.ActorPoolStrategy(size=workers or min(units, max(1, len(images) // 32))),
            # Half a core: a pool that takes every core would wait for ever for the tasks that feed it.
            num_cpus=0.5,
            num_gpus=1 if use_gpu else 0,
            batch_size=16,
            batch_format="numpy",
        )
        .take_all()
    )
    found.sort(key=lambda row: row["image_id"])
    by_checkpoint = {
        checkpoint: [_detections(row, i) for row in found if not row["reason"]]
        for i, checkpoint in enumerate(checkpoints)
    }
    rejects = [{"file": row["path"], "row": 0, "reason": row["reason"]} for row in found if row["reason"]]
    return Predictions(by_checkpoint, rejects)


def write_predictions(
    checkpoint: str,
    images: str,
    output: str,
    *,
    part: str,
    options: RunOptions,
    augmentation: TestTimeAugmentation = "none",
    workers: int | None = None,
) -> tuple[int, int]:
    """Detections of one checkpoint in a folder of raw images or in a part of a prepared dataset, as files in `output`.

    Writes `detections.parquet` and `rejects.csv`; returns how many images were read and how many refused.
    """
    if workers is not None and workers < 1:
        raise InputError(f"--workers {workers}: want 1 or more")
    read_info(checkpoint)  # told before a cluster is busy
    is_prepared = storage.exists(storage.join(images, "dataset.json"))
    items = images_of_part(open_dataset(images), parse_part(part)) if is_prepared else images_in_folder(images)
    found = predict([storage.absolute(checkpoint)], items, options=options, augmentation=augmentation, workers=workers)
    (detections,) = found.by_checkpoint.values()
    storage.write_table(storage.join(output, "detections.parquet"), detections_to_table(detections))
    storage.write_csv(storage.join(output, "rejects.csv"), found.rejects, REJECT_COLUMNS)
    return len(detections), len(found.rejects)


def _check_preparation(checkpoint: str, info: CheckpointInfo, images: Sequence[dict[str, Any]]) -> None:
    for name, wanted in (("channels", info.channels), ("resize", info.resize)):
        other = next((item[name] for item in images if item[name] not in ("", wanted)), None)
        if other is not None:
            raise InputError(
                f"{checkpoint}: trained on images of --{name} {wanted}, but these were prepared with --{name} {other}; "
                "prepare them again, or give the raw files"
            )


def _detections(row: dict[str, Any], checkpoint: int) -> Detections:
    flat = np.asarray(row["found"][checkpoint], np.float64).reshape(-1, 6)
    return Detections(
        row["image_id"], flat[:, :4].astype(np.float32), flat[:, 4].astype(np.float32), flat[:, 5].astype(np.int64)
    )


class _Predictor:
    """Lives in a Ray actor with all detectors loaded; called with batches of items."""

    def __init__(self, checkpoints: list[str], options: RunOptions, augmentation: TestTimeAugmentation):
        import cv2
        import torch

        from vbd.training.loop import choose_device

        cv2.setNumThreads(0)
        torch.set_num_threads(options.threads)
        self.device = choose_device(options)
        self.detectors = [load_detector(checkpoint) for checkpoint in checkpoints]
        for detector, _ in self.detectors:
            detector.to(self.device)
        self.augmentation = augmentation

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        columns: dict[str, list[Any]] = {"image_id": [], "path": [], "reason": [], "found": []}
        for image_id, path, height, width in zip(
            *(batch[name].tolist() for name in ("image_id", "path", "height", "width")), strict=True
        ):
            try:
                found, reason = self._detect(image_id, path, (height, width)), ""
            except InputError as error:
                found, reason = [[] for _ in self.detectors], str(error).removeprefix(f"{path}: ")
            for name, value in zip(columns, (image_id, path, reason, found), strict=True):
                columns[name].append(value)
        return columns

    def _detect(self, image_id: str, path: str, original_hw: tuple[int, int]) -> list[list[float]]:
        """What each detector finds, as a flat list of x_min, y_min, x_max, y_max, score, label: Arrow's plainest type."""
        data = storage.read_bytes(path)
        pixels: dict[tuple[PrepareConfig, int], tuple[np.ndarray, tuple[int, int]]] = {}
        results = []
        for detector, info in self.detectors:
            key = _preparation(info), info.config.image_size
            if key not in pixels:
                pixels[key] = _square_image(data, path, original_hw, config=key[0], image_size=key[1])
            image, hw = pixels[key]
            found = self._run(detector, info, image_id, image, hw)
            rows = np.concatenate([found.boxes, found.scores[:, None], found.labels[:, None]], axis=1)
            results.append(rows.astype(np.float64).ravel().tolist())
        return results

    def _run(
        self, detector: Any, info: CheckpointInfo, image_id: str, image: np.ndarray, hw: tuple[int, int]
    ) -> Detections:
        plain = self._forward(detector, info, image)
        runs = [plain]
        if self.augmentation == "flip":
            boxes, scores, labels = self._forward(detector, info, image[:, ::-1])
            runs.append((hflip(boxes, image.shape[1]), scores, labels))
        detections = [
            to_detections(
                image_id, *run, original_hw=hw, image_size=len(image), options=PrepareConfig(resize=info.resize)
            )
            for run in runs
        ]
        if len(detections) == 1:
            return detections[0]
        return fuse(detections, weights=[1.0] * len(detections), iou_threshold=_MIRROR_IOU)

    def _forward(
        self, detector: Any, info: CheckpointInfo, image: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        import torch

        from vbd.training.loop import autocast

        with torch.inference_mode(), autocast(self.device, info.config):
            pixels = torch.from_numpy(np.ascontiguousarray(image)).float().div_(255).to(self.device)
            channels = pixels.expand(3, -1, -1) if pixels.ndim == 2 else pixels.permute(2, 0, 1)
            (prediction,) = detector(channels[None])
        boxes, scores, labels = (prediction[name].float().cpu().numpy() for name in ("boxes", "scores", "labels"))
        return boxes, scores, labels


def _preparation(info: CheckpointInfo) -> PrepareConfig:
    """How the images were made that a detector was trained on."""
    return PrepareConfig(
        image_size=info.prepared_size or info.config.image_size,
        resize=info.resize,
        image_format=info.image_format,
        channels=info.channels,
    )


def _square_image(
    data: bytes, path: str, original_hw: tuple[int, int], *, config: PrepareConfig, image_size: int
) -> tuple[np.ndarray, tuple[int, int]]:
    """uint8 (S, S) or (S, S, 3) and the original (height, width), from a raw file or a prepared image.

    A raw file takes the whole way of a prepared one, so that it gives the very same pixels.
    """
    if original_hw[0] == 0:
        made = prepare_image(data, name=path, config=config, with_hash=False)
        data, original_hw = made.data, made.original_hw
    return resize_square(decode_image(data), image_size), original_hw
