"""Predictions of any kind, read as detections in original pixels, and the part of a dataset that they are about."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vbd import storage
from vbd.boxes import as_boxes, xywh_to_xyxy
from vbd.config.difference import shortened
from vbd.data.parts import fold_of_image, in_words, parts_holding, parts_of_folds, truths_of
from vbd.data.prepared import (
    Part,
    PreparedDataset,
    image_numbers,
    image_sizes,
    to_detections,
)
from vbd.detections import LARGEST_PIXEL, read_detections
from vbd.errors import InputError
from vbd.labels import NUM_FINDINGS
from vbd.records import Detections, Truth
from vbd.submission.file import read_submission
from vbd.training.members import MANIFEST, OUT_OF_FOLD, read_members

DETECTIONS = "detections.parquet"
_KINDS = f"{DETECTIONS}, {OUT_OF_FOLD}, {MANIFEST}, a submission.csv or COCO results (.json)"


@dataclass(frozen=True)
class Source:
    """One set of predictions: a file, or what the checkpoints of one member of an ensemble found."""

    location: str  # as the user gave it
    files: tuple[str, ...]  # what was read
    detections: list[Detections]
    member: str = ""  # its name in a folder of several

    @property
    def name(self) -> str:
        """What it is called in reports and messages."""
        return f"{self.location}: {self.member}" if self.member else self.location


def read_predictions(location: str, dataset: PreparedDataset, part: Part | None) -> list[Source]:
    """The predictions in a file or folder; several only for a folder with the manifest of an ensemble's members.

    `part` names the file that COCO results count their images in. Raises InputError when it holds no predictions.
    """
    if location.endswith(".csv"):
        return [Source(location, (location,), read_submission(location))]
    if location.endswith(".json"):
        return [Source(location, (location,), _read_coco_results(location, dataset, part))]
    if location.endswith(".parquet"):
        return [_read_tables(location, [location])]
    return _read_folder(location, dataset)


def _read_folder(folder: str, dataset: PreparedDataset) -> list[Source]:
    """A folder by jobs/predict.py, jobs/train.py or jobs/tune.py, or a checkpoint."""
    names = storage.list_names(folder)
    if MANIFEST in names:
        return _read_members(folder, dataset)
    if "best" in names and storage.exists(storage.join(folder, "best", MANIFEST)):
        return _read_members(storage.join(folder, "best"), dataset)
    for name in (DETECTIONS, OUT_OF_FOLD):
        if name in names:
            return [_read_tables(folder, [storage.join(folder, name)])]
    state = "holds no predictions" if names else "no such file or folder, or an empty one"
    raise InputError(f"{folder}: {state}; want {_KINDS}")


def _read_members(folder: str, dataset: PreparedDataset) -> list[Source]:
    """What each member's checkpoints found on the images they did not train on."""
    return [
        _read_tables(folder, [storage.join(checkpoint, OUT_OF_FOLD) for checkpoint in member.folders], member.name)
        for member in read_members(folder, dataset)
    ]


def _read_tables(location: str, files: Sequence[str], member: str = "") -> Source:
    return Source(location, tuple(files), [found for file in files for found in read_detections(file)], member)


# -------------------------------------------------------------------------------------------------------- COCO results


def _read_coco_results(location: str, dataset: PreparedDataset, part: Part | None) -> list[Detections]:
    """COCO results: boxes `xywh` in pixels of the prepared image, images by number (of the part's file) or by name."""
    entries = storage.read_json(location)
    if not isinstance(entries, list):
        raise InputError(f"{location}: want a list of COCO results (image_id, category_id, bbox, score)")
    names = _image_names(location, dataset, part) if any(isinstance(_id(e), int) for e in entries) else {}
    entries_of: dict[str, list[dict[str, Any]]] = {}
    for place, entry in enumerate(entries):
        name = names.get(_id(entry), _id(entry))
        if not isinstance(name, str):
            raise InputError(f"{location}: entry {place}: no image {name!r} in this part of {dataset.location}")
        entries_of.setdefault(name, []).append(_checked(entry, f"{location}: entry {place}"))
    sizes = image_sizes(dataset, "train") | image_sizes(dataset, "test")
    unknown = next((name for name in entries_of if name not in sizes), None)
    if unknown is not None:
        raise InputError(f"{location}: image {unknown!r} is not in {dataset.location}")
    return [
        _from_coco_results(name, entries_of.get(name, []), sizes[name], dataset)
        for name in names.values() or entries_of
    ]


def _id(entry: Any) -> int | str | None:
    value = entry.get("image_id") if isinstance(entry, dict) else None
    return value if isinstance(value, (int, str)) else None


def _image_names(location: str, dataset: PreparedDataset, part: Part | None) -> dict[Any, str]:
    """Names of the images by their numbers, which count anew in each file of annotations."""
    if part is None:
        raise InputError(
            f"{location}: gives images by number; name the file they count in with --part (test, train, 0..)"
        )
    return {number: image_id for image_id, number in image_numbers(dataset, part).items()}


def _checked(entry: dict[str, Any], where: str) -> dict[str, Any]:
    values: list[Any] = [entry.get(name) for name in ("bbox", "category_id", "score")]
    bbox, category, score = values
    if not (isinstance(bbox, list) and len(bbox) == 4 and all(map(_is_pixel, bbox)) and min(bbox[2:]) >= 0):
        raise InputError(f"{where}: bbox is {shortened(bbox)}; want [x, y, width, height] in pixels, sides from 0 on")
    if not (_is_number(category) and category in range(1, NUM_FINDINGS + 1)):
        raise InputError(f"{where}: category_id is {shortened(category)}; want 1 to {NUM_FINDINGS}")
    if not (_is_number(score) and 0 <= score <= 1):
        raise InputError(f"{where}: score is {shortened(score)}; want a number from 0 to 1")
    return entry


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_pixel(value: Any) -> bool:
    return _is_number(value) and abs(value) <= LARGEST_PIXEL


def _from_coco_results(
    image_id: str, entries: Sequence[dict[str, Any]], original_hw: tuple[int, int], dataset: PreparedDataset
) -> Detections:
    ordered = sorted(entries, key=lambda entry: -entry["score"])
    return to_detections(
        image_id,
        xywh_to_xyxy(as_boxes([entry["bbox"] for entry in ordered])),
        np.array([entry["score"] for entry in ordered], np.float32),
        np.array([entry["category_id"] - 1 for entry in ordered], np.int64),
        original_hw=original_hw,
        image_size=dataset.options.image_size,
        options=dataset.options,
    )


# ---------------------------------------------------------------------------------------------------------------- part


@dataclass(frozen=True)
class Chosen:
    """A set of predictions on the images that it is scored on."""

    source: Source
    parts: tuple[Part, ...]
    truths: list[Truth]  # of the parts, by image id
    detections: list[Detections]  # those of the source whose images are among the truths

    @property
    def where(self) -> str:
        """The parts in words."""
        return in_words(self.parts)

    @property
    def left_out(self) -> int:
        """Images of the source outside the parts."""
        return len(self.source.detections) - len(self.detections)


def choose(source: Source, dataset: PreparedDataset, part: Part | None) -> Chosen:
    """The named part of a dataset, or else the test part, or all folds that hold one of the source's images."""
    _folds_of(source.name, source.detections, dataset)
    if part is not None:
        return _on(source, dataset, (part,))
    parts = parts_holding([found.image_id for found in source.detections], dataset, name=source.name)
    if not parts:
        raise InputError(f"{source.name}: holds no image")
    return _on(source, dataset, parts)


def choose_as(first: Chosen, source: Source, dataset: PreparedDataset) -> Chosen:
    """Another source on the very images of a first one; raises InputError when it does not hold all their folds."""
    wanted = _folds_of(first.source.name, first.detections, dataset)
    missing = sorted(set(wanted) - set(_folds_of(source.name, source.detections, dataset)))
    if missing:
        raise InputError(
            f"{source.name}: holds no image of the {in_words(parts_of_folds(missing))}, on which {first.source.name} is "
            "scored; choose with --part what both hold"
        )
    return _on(source, dataset, first.parts)


def _folds_of(name: str, detections: Sequence[Detections], dataset: PreparedDataset) -> list[int]:
    """The folds that hold one of the images, sorted; raises InputError for an image that the dataset does not hold."""
    fold_of = fold_of_image(dataset)
    unknown = next((found.image_id for found in detections if found.image_id not in fold_of), None)
    if unknown is not None:
        raise InputError(f"{name}: image {unknown!r} is not in {dataset.location}; give the dataset it was made on")
    return sorted({fold_of[found.image_id] for found in detections})


def _on(source: Source, dataset: PreparedDataset, parts: tuple[Part, ...]) -> Chosen:
    truths = truths_of(parts, dataset)
    inside = {truth.image_id for truth in truths}
    mine = [found for found in source.detections if found.image_id in inside]
    if not mine:
        raise InputError(
            f"{source.name}: none of its images is in the {in_words(parts)} of {dataset.location}; choose another --part"
        )
    return Chosen(source, parts, truths, mine)
