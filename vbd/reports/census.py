"""What a prepared dataset holds, counted: the numbers behind the exploratory report, without a page around them."""

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vbd import storage
from vbd.boxes import areas, to_prepared
from vbd.data.batches.balance import effective_counts, policy_factors, repeat_factors
from vbd.data.coco import from_coco, read_coco
from vbd.data.prepared import PreparedDataset, annotations_of
from vbd.data.rejects import reject_reasons
from vbd.errors import InputError
from vbd.labels import NUM_FINDINGS
from vbd.records import READING_COLUMNS, Truth

if TYPE_CHECKING:
    import pandas as pd

# A lesion with a shorter side, in pixels of the square input, is hardly seen by any of the detectors.
MIN_VISIBLE_SIDE = 8
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Census:
    """The training part of a prepared dataset: its fused truth, its folds and its readers."""

    dataset: PreparedDataset
    truths: Sequence[Truth]  # of the training images, normal ones too
    folds: NDArray[np.int64]  # (n,) of each truth
    original_hw: dict[str, tuple[int, int]]
    readings: "pd.DataFrame"  # records.READING_COLUMNS
    readers: "pd.DataFrame"  # image_id, rad_id: who read which image, whether or not they drew a box
    groups: dict[str, str]  # image_id: group of images that look alike; empty when the dataset does not tell

    def readers_of(self, image_id: str) -> list[str]:
        """Who read an image: R8, R9, R10."""
        return sorted(self.readers.loc[self.readers["image_id"] == image_id, "rad_id"], key=counting_order)

    def readings_of(self, image_id: str) -> "pd.DataFrame":
        """What was drawn on an image."""
        return self.readings[self.readings["image_id"] == image_id]

    @cached_property
    def label_sets(self) -> list[set[int]]:
        """The classes that each image shows."""
        return [set(truth.labels.tolist()) for truth in self.truths]


def read_census(dataset: PreparedDataset) -> Census:
    """Reads the annotations of a prepared dataset; no image is opened."""
    location = annotations_of(dataset, "train")
    document = read_coco(location)
    images = document["images"]
    known = [image["image_id"] for image in images]
    tables = {
        name: storage.read_table(storage.join(dataset.location, "annotations", f"{name}.parquet"), columns).to_pandas()
        for name, columns in (("readings", list(READING_COLUMNS)), ("readers", ["image_id", "rad_id"]))
    }
    return Census(
        dataset=dataset,
        truths=from_coco(document, where=location),
        folds=np.array([image["fold"] for image in images], np.int64),
        original_hw={image["image_id"]: (image["original_height"], image["original_width"]) for image in images},
        # Images that were refused are in these tables too.
        **{name: table[table["image_id"].isin(known)].reset_index(drop=True) for name, table in tables.items()},
        groups=_read_groups(storage.join(dataset.location, "annotations", "folds.csv"), set(known)),
    )


def counting_order(name: str) -> list[tuple[int, str]]:
    """Sorts names by the numbers in them: R8, R9, R10."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", name)]


def _read_groups(location: str, known: Collection[str]) -> dict[str, str]:
    if not storage.exists(location):
        return {}
    rows = storage.read_csv(location)
    try:
        return {row["image_id"]: row["group"] for row in rows if row["image_id"] in known}
    except KeyError as error:
        raise InputError(f"{location}: no column {error}; prepare the dataset again") from None


@dataclass(frozen=True)
class AllBoxes:
    """The fused boxes of all images in one row."""

    image: NDArray[np.int64]  # (n,) place of the image in the census
    labels: NDArray[np.int64]  # (n,)
    readers: NDArray[np.int64]  # (n,) how many readers drew it
    norm: NDArray[np.float64]  # (n, 4) xyxy as shares of the original image
    sides: NDArray[np.float32]  # (n, 2) width and height as shares of the square prepared image's side


def all_boxes(census: Census) -> AllBoxes:
    """The fused boxes of the training images, as shares of their image."""
    counts = [len(truth.labels) for truth in census.truths]
    norm, sides = [np.zeros((0, 4))], [np.zeros((0, 2), np.float32)]
    for truth in (truth for truth in census.truths if len(truth.labels)):
        hw = census.original_hw[truth.image_id]
        norm.append(truth.boxes / np.array([hw[1], hw[0], hw[1], hw[0]], float))
        square = to_prepared(truth.boxes, hw, 1, census.dataset.options.resize)
        sides.append(square[:, 2:] - square[:, :2])
    return AllBoxes(
        image=np.repeat(np.arange(len(counts)), counts),
        labels=np.concatenate([np.zeros(0, np.int64), *(truth.labels for truth in census.truths)]),
        readers=np.concatenate([np.zeros(0, np.int64), *(truth.readers for truth in census.truths)]),
        norm=np.concatenate(norm),
        sides=np.concatenate(sides),
    )


def drawn_per_class(census: Census) -> NDArray[np.int64]:
    """Boxes of each class as the readers drew them, before fusing: (14,)."""
    return np.bincount(census.readings["label"].to_numpy(np.int64), minlength=NUM_FINDINGS)


def boxes_by_agreement(boxes: AllBoxes) -> NDArray[np.int64]:
    """Fused boxes of each class by how many readers drew them: (14, r), column 0 is one reader."""
    most = max(1, int(boxes.readers.max(initial=1)))
    table = np.zeros((NUM_FINDINGS, most), np.int64)
    # The truth of a COCO source may not say who drew a box: that is 0 readers, counted as one.
    np.add.at(table, (boxes.labels, np.maximum(boxes.readers, 1) - 1), 1)
    return table


def images_per_class(label_sets: Sequence[set[int]]) -> NDArray[np.int64]:
    """Images that show each class: (14,)."""
    counts = Counter(label for labels in label_sets for label in labels)
    return np.array([counts[label] for label in range(NUM_FINDINGS)], np.int64)


def co_occurrence(label_sets: Sequence[set[int]]) -> NDArray[np.int64]:
    """Images that show both classes: (14, 14); the diagonal counts the images of each class."""
    held = np.zeros((len(label_sets), NUM_FINDINGS), np.int64)
    for row, labels in enumerate(label_sets):
        held[row, list(labels)] = 1
    return held.T @ held


def size_quantiles(boxes: AllBoxes) -> NDArray[np.float64]:
    """Square root of the boxes' share of the image at QUANTILES: (14, 5), NaN for a class without a box."""
    sides = np.sqrt(areas(boxes.norm))
    return np.array(
        [
            np.quantile(sides[boxes.labels == label], QUANTILES) if (boxes.labels == label).any() else [np.nan] * 5
            for label in range(NUM_FINDINGS)
        ]
    )


def visible_share(boxes: AllBoxes, image_size: int) -> NDArray[np.float64]:
    """Share of boxes that keep MIN_VISIBLE_SIDE pixels on both sides at an image size: (15,), of each class and of all.

    NaN for a class without a box.
    """
    # Coordinates are stored to a thousandth of a pixel.
    is_visible = (boxes.sides * image_size >= MIN_VISIBLE_SIDE - 1e-3).all(axis=1)
    visible, total = (
        np.bincount(labels, minlength=NUM_FINDINGS) for labels in (boxes.labels[is_visible], boxes.labels)
    )
    visible, total = np.append(visible, visible.sum()), np.append(total, total.sum())
    return np.divide(visible, total, out=np.full(NUM_FINDINGS + 1, np.nan), where=total > 0)


def position_maps(boxes: AllBoxes, *, cells: int = 32) -> NDArray[np.float64]:
    """How often a box of a class covers each cell of the image: (14, cells, cells) shares, y from the top."""
    maps = np.zeros((NUM_FINDINGS, cells, cells))
    lows = np.clip(np.floor(boxes.norm[:, :2] * cells), 0, cells - 1).astype(int)
    highs = np.clip(np.ceil(boxes.norm[:, 2:] * cells), 1, cells).astype(int)
    for label, (x_low, y_low), (x_high, y_high) in zip(boxes.labels, lows, highs, strict=True):
        maps[label, y_low:y_high, x_low:x_high] += 1
    counts = np.bincount(boxes.labels, minlength=NUM_FINDINGS)
    return maps / np.maximum(counts, 1)[:, None, None]


@dataclass(frozen=True)
class ReaderCount:
    """One radiologist's work on the training images."""

    rad_id: str
    images: int
    abnormal: int  # of these images, those on which any reader drew a box
    drew: int  # those on which this reader drew a box
    boxes: int
    per_class: NDArray[np.int64]  # (14,) images on which this reader drew a class


def reader_counts(census: Census) -> list[ReaderCount]:
    """Every reader, most boxes first."""
    read = census.readers.drop_duplicates()
    is_abnormal = read["image_id"].isin(census.readings["image_id"].unique())
    images, abnormal = (part["rad_id"].value_counts() for part in (read, read[is_abnormal]))
    drawn = dict(tuple(census.readings.groupby("rad_id")))
    counts = []
    for name in images.index:
        boxes = drawn.get(name, census.readings[:0])
        shown = boxes[["image_id", "label"]].drop_duplicates()["label"].to_numpy(np.int64)
        counts.append(
            ReaderCount(
                rad_id=str(name),
                images=int(images[name]),
                abnormal=int(abnormal.get(name, 0)),
                drew=int(boxes["image_id"].nunique()),
                boxes=len(boxes),
                per_class=np.bincount(shown, minlength=NUM_FINDINGS),
            )
        )
    return sorted(counts, key=lambda count: (-count.boxes, -count.images, counting_order(count.rad_id)))


def images_by_votes(census: Census) -> dict[tuple[int, int], int]:
    """Images by (how many of its readers drew a box, how many read it)."""
    read = census.readers.drop_duplicates()["image_id"].value_counts()
    drew = census.readings.groupby("image_id")["rad_id"].nunique().reindex(read.index, fill_value=0)
    return dict(sorted(Counter(zip(drew.tolist(), read.tolist(), strict=True)).items()))


@dataclass(frozen=True)
class TeamCount:
    """The images that the same readers read."""

    rad_ids: tuple[str, ...]
    per_fold: NDArray[np.int64]  # (folds,) images
    abnormal: int  # images with a fused box


def team_counts(census: Census) -> list[TeamCount]:
    """Every set of readers that read an image together, most images first."""
    names: dict[str, list[str]] = {truth.image_id: [] for truth in census.truths}
    read = census.readers.drop_duplicates()
    for image_id, name in zip(read["image_id"], read["rad_id"], strict=True):
        names[image_id].append(str(name))
    places: dict[tuple[str, ...], list[int]] = {}
    for place, truth in enumerate(census.truths):
        places.setdefault(tuple(sorted(names[truth.image_id], key=counting_order)), []).append(place)
    counts = [
        TeamCount(
            team,
            per_fold=np.bincount(census.folds[rows], minlength=census.dataset.options.num_folds),
            abnormal=sum(bool(census.label_sets[row]) for row in rows),
        )
        for team, rows in places.items()
    ]
    return sorted(counts, key=lambda count: (-int(count.per_fold.sum()), count.rad_ids))


def similar_images(census: Census) -> list[list[int]]:
    """Places of the images that look alike, a list for each group of two or more, the largest first."""
    places: dict[str, list[int]] = {}
    for place, truth in enumerate(census.truths):
        group = census.groups.get(truth.image_id, "")
        if group:
            places.setdefault(group, []).append(place)
    return sorted((rows for rows in places.values() if len(rows) > 1), key=lambda rows: (-len(rows), rows))


def fold_table(census: Census) -> NDArray[np.int64]:
    """What each fold holds: (folds, 2 + 14), images, normal images, images of each class."""
    rows = []
    for fold in range(census.dataset.options.num_folds):
        inside = [labels for labels, k in zip(census.label_sets, census.folds, strict=True) if k == fold]
        rows.append([len(inside), sum(not labels for labels in inside), *images_per_class(inside)])
    return np.array(rows, np.int64)


def class_factors(census: Census, *, threshold: float) -> NDArray[np.float64]:
    """Repeat factor that each class asks for by itself (Gupta et al. 2019, LVIS): (14,), at least 1.

    An image is repeated for the rarest of its classes, so an epoch shows most classes more often than this.
    """
    abnormal = [labels for labels in census.label_sets if labels]
    shares = images_per_class(abnormal) / max(1, len(abnormal))
    return np.sqrt(np.maximum(1, np.divide(threshold, shares, out=np.zeros(NUM_FINDINGS), where=shares > 0)))


def sampled_counts(census: Census, *, threshold: float, policy_d: bool = False) -> NDArray[np.float64]:
    """Abnormal images that one epoch shows in all, and of each class: (1 + 14,)."""
    abnormal = [labels for labels in census.label_sets if labels]
    factors = repeat_factors(abnormal, threshold=threshold)
    if policy_d:
        factors = factors * policy_factors(abnormal, policy="D", strength=1.0)
    return np.concatenate([[factors.sum()], effective_counts(abnormal, factors)])


def rejects_by_reason(dataset: PreparedDataset) -> list[tuple[str, int, str]]:
    """Reasons of refusal with their count and one example, most frequent first; numbers in a reason do not matter."""
    return reject_reasons(storage.read_csv(storage.join(dataset.location, "rejects.csv")))
