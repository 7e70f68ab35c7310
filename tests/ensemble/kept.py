"""A dataset without training, and kept checkpoints whose detections are made up: what jobs/ensemble.py starts from."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tests.data.prepared_folders import write_prepared
from tests.ensemble.members import classifier, detector, truths_of
from vbd import storage
from vbd.boxes import to_prepared
from vbd.config import TrainConfig
from vbd.data.coco import LabelledImage
from vbd.data.prepared import open_dataset
from vbd.drawing import png
from vbd.predict.request import Predictions
from vbd.records import Detections, Truth, detections_to_table
from vbd.training.checkpoint import write_checkpoint
from vbd.training.members import OUT_OF_FOLD, Member, write_members

SIZE = 64
VARIANTS = {"yolox": "nano", "faster_rcnn": "resnet50", "efficientdet": "lite0", "classifier": "mobilenetv3_small_050"}


def write_dataset(folder: Path, *, images: int = 160, test_images: int = 40, has_test_truth: bool = True) -> str:
    """Two folds, and a test part; pixels are noise."""
    truths = truths_of(images + test_images)
    labelled = [_labelled(truth, i % 2 if i < images else -1) for i, truth in enumerate(truths)]
    pixels = png(np.random.default_rng(0).integers(60, 140, (SIZE, SIZE)).astype(np.uint8))
    for image in labelled:
        storage.write_bytes(str(folder / "images" / f"{image.image_id}.png"), pixels)
    return write_prepared(
        str(folder),
        labelled[:images],
        labelled[images:],
        size=SIZE,
        counts={"test_images": test_images, "rejects": 0},
        has_test_truth=has_test_truth,
    )


def _labelled(truth: Truth, fold: int) -> LabelledImage:
    return LabelledImage(
        image_id=truth.image_id,
        fold=fold,
        original_hw=truth.original_hw,
        boxes=to_prepared(truth.boxes, truth.original_hw, SIZE, "stretch"),
        boxes_original=truth.boxes,
        labels=truth.labels,
        readers=truth.readers,
        rad_ids=[("R1",)] * len(truth.labels),
    )


def every_image() -> list[Truth]:
    """The truth of all images of `write_dataset` with its default numbers."""
    return truths_of(200)


def good_members() -> dict[str, list[Detections]]:
    """Two detectors that err apart, and a classifier that knows more than their boxes."""
    truths = every_image()
    return {
        "classifier-1": classifier(truths, 5, skill=2.5),
        "faster_rcnn-1": detector(truths, 1),
        "yolox-1": detector(truths, 2),
    }


def write_kept(
    run: Path, data: str, members: Mapping[str, Sequence[Detections]], *, folds: Sequence[int] = (0,)
) -> str:
    """A finished run that keeps a checkpoint of each member for each fold; names are `<family>-<rank>`."""
    dataset = open_dataset(data)
    fold_of = {image.image_id: i % 2 for i, image in enumerate(every_image()[:160])}
    written = []
    for name, found in members.items():
        family = name.partition("-")[0]
        folders = tuple(run / "best" / (name if len(folds) == 1 else f"{name}-fold{k}") for k in folds)
        for fold, folder in zip(folds, folders, strict=True):
            config = TrainConfig(detector=family, variant=VARIANTS[family], fold=fold)  # type: ignore[arg-type]
            write_checkpoint(folder, config=config, dataset=dataset, weights={}, state={}, step=1, metrics={})
            own = [each for each in found if fold_of.get(each.image_id) == fold]
            storage.write_table(str(folder / OUT_OF_FOLD), detections_to_table(own))
        written.append(Member(name, name, 0.5, tuple(map(str, folders))))
    write_members(str(run / "best"), written, dataset.fingerprint, synthetic=True)
    return str(run)


class FakePredict:
    """Stands in for `predict`: what a member found is known, and who was asked is kept."""

    def __init__(self, members: Mapping[str, Sequence[Detections]]) -> None:
        self.members = members
        self.asked: list[str] = []

    def __call__(self, checkpoints: Sequence[str], images: Sequence[dict], **_: object) -> Predictions:
        wanted = {image["image_id"] for image in images}
        names = [Path(folder).name.partition("-fold")[0] for folder in checkpoints]
        self.asked += names
        found = {
            folder: [each for each in self.members[name] if each.image_id in wanted]
            for folder, name in zip(checkpoints, names, strict=True)
        }
        return Predictions(found, [])
