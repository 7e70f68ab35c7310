"""What a prepared dataset holds, counted: the numbers behind the exploratory report, without a page around them."""

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vbd import storage
from vbd.augment.balance import effective_counts, policy_factors, repeat_factors
from vbd.boxes import areas, to_prepared
from vbd.data.coco import from_coco
from vbd.data.prepared import PreparedDataset
from vbd.labels import NUM_FINDINGS
from vbd.records import Truth
from vbd.rejects import reject_reasons

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

    def readers_of(self, image_id: str) -> list[str]:
        """Who read an image, sorted."""
        return sorted(self.readers.loc[self.readers["image_id"] == image_id, "rad_id"])

    def readings_of(self, image_id: str) -> "pd.DataFrame":
        """What was drawn on an image."""
        return self.readings[self.readings["image_id"] == image_id]

    @property
    def label_sets(self) -> list[set[int]]:
        """The classes that each image shows."""
        return [set(truth.labels.tolist()) for truth in self.truths]


def read_census(dataset: PreparedDataset) -> Census:
    """Reads the annotations of a prepared dataset; no image is opened."""
    document = storage.read_json(storage.join(dataset.location, "annotations", "instances_all.json"))
    images = document["images"]
    known = [image["image_id"] for image in images]
    tables = {
        name: storage.read_table(storage.join(dataset.location, "annotations", f"{name}.parquet")).to_pandas()
        for name in ("readings", "readers")
    }
    return Census(
        dataset=dataset,
        truths=from_coco(document, where=f"{dataset.location}/annotations/instances_all.json"),
        folds=np.array([image["fold"] for image in images], np.int64),
        original_hw={image["image_id"]: (image["original_height"], image["original_width"]) for image in images},
        # Images that were refused are in these tables too.
        **{name: table[table["image_id"].isin(known)].reset_index(drop=True) for name, table in tables.items()},
    )


@dataclass(frozen=True)
class AllBoxes:
    """The fused boxes of all images in one row."""

    image: NDArray[np.int64]  # (n,) place of the image in the census
    labels: NDArray[np.int64]  # (n,)
    readers: NDArray[np.int64]  # (n,) how many readers drew it
    norm: NDArray[np.float64]  # (n, 4) xyxy as shares of the original image


def all_boxes(census: Census) -> AllBoxes:
    """The fused boxes of the training images, as shares of their image."""
    counts = [len(truth.labels) for truth in census.truths]
    scale = [[census.original_hw[truth.image_id][i] for i in (1, 0, 1, 0)] for truth in census.truths]
    norm = [truth.boxes / np.array(whwh, float) for truth, whwh in zip(census.truths, scale, strict=True)]
    return AllBoxes(
        image=np.repeat(np.arange(len(counts)), counts),
        labels=np.concatenate([np.zeros(0, np.int64), *(truth.labels for truth in census.truths)]),
        readers=np.concatenate([np.zeros(0, np.int64), *(truth.readers for truth in census.truths)]),
        norm=np.concatenate([np.zeros((0, 4)), *norm]),
    )


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


def visible_share(census: Census, image_size: int) -> NDArray[np.float64]:
    """Share of each class's boxes that keep MIN_VISIBLE_SIDE pixels on both sides at an image size: (14,), or NaN."""
    visible, total = np.zeros(NUM_FINDINGS), np.zeros(NUM_FINDINGS)
    for truth in census.truths:
        hw = census.original_hw[truth.image_id]
        boxes = to_prepared(truth.boxes, hw, image_size, census.dataset.options.resize)
        is_visible = (boxes[:, 2:] - boxes[:, :2] >= MIN_VISIBLE_SIDE).all(axis=1)
        np.add.at(total, truth.labels, 1)
        np.add.at(visible, truth.labels[is_visible], 1)
    return np.divide(visible, total, out=np.full(NUM_FINDINGS, np.nan), where=total > 0)


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
    abnormal: int  # images on which this reader drew a box
    boxes: int


def reader_counts(census: Census) -> list[ReaderCount]:
    """Every reader, most boxes first."""
    read = census.readers.groupby("rad_id")["image_id"].nunique()
    drawn = census.readings.groupby("rad_id")["image_id"].agg(["nunique", "size"])
    counts = [
        ReaderCount(
            rad_id=str(name),
            images=int(images),
            abnormal=int(drawn["nunique"].get(name, 0)),
            boxes=int(drawn["size"].get(name, 0)),
        )
        for name, images in read.items()
    ]
    return sorted(counts, key=lambda count: (-count.boxes, -count.images, count.rad_id))


def fold_table(census: Census) -> NDArray[np.int64]:
    """What each fold holds: (folds, 2 + 14), images, normal images, images of each class."""
    rows = []
    for fold in range(census.dataset.options.num_folds):
        inside = [labels for labels, k in zip(census.label_sets, census.folds, strict=True) if k == fold]
        rows.append([len(inside), sum(not labels for labels in inside), *images_per_class(inside)])
    return np.array(rows, np.int64)


def sampled_counts(census: Census, *, threshold: float, policy_d: bool = False) -> NDArray[np.float64]:
    """Abnormal images that one epoch shows in all, and of each class: (1 + 14,)."""
    abnormal = [labels for labels in census.label_sets if labels]
    factors = repeat_factors(abnormal, threshold=threshold)
    if policy_d:
        factors = factors * policy_factors(abnormal, policy="D", strength=1.0)
    return np.concatenate([[factors.sum()], effective_counts(abnormal, factors)])


def rejects_by_reason(dataset: PreparedDataset) -> list[tuple[str, int, str]]:
    """Reasons of refusal with their count and one example, most frequent first; numbers in a reason do not matter."""
    text = storage.read_bytes(storage.join(dataset.location, "rejects.csv")).decode()
    rows = list(csv.DictReader(io.StringIO(text)))
    return reject_reasons(rows)
