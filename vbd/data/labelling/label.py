"""From readings to the labels of a prepared dataset: readers fused, boxes cut at the border, folds, COCO. No pixels.

It runs anew in seconds whenever a label file or an option changes; the images stay as they are.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vbd import storage
from vbd.boxes import EMPTY, as_boxes, clip, has_area, to_prepared
from vbd.config import PrepareConfig
from vbd.data.coco import LabelledImage, select_folds, to_coco
from vbd.data.images.duplicates import near_duplicate_groups
from vbd.data.labelling.folds import assign_folds, fold_table
from vbd.data.labelling.readers import COORDINATES, fuse_readers
from vbd.data.prepared import TEST_FOLD, labels_table_schema
from vbd.data.rejects import Reject, reject
from vbd.data.sources.tables import ALL_REFUSED, DICOM_SUFFIXES, Source
from vbd.errors import InputError
from vbd.labels import CLASS_NAMES

if TYPE_CHECKING:
    import pandas as pd

# A box that the image's border leaves less of, in original pixels, shows nothing.
MIN_SIDE = 1.0
# How far a box may reach beyond its image by rounding, as a share of the side and in pixels: it is cut at the border.
_SLACK, _MIN_SLACK = 0.01, 2.0
# How far the sides' ratio of a picture may be from that of the sizes it was given, before it is another picture.
_RATIO_TOLERANCE = 0.02


@dataclass(frozen=True)
class ImageFacts:
    """What decoding told of an image that could be used."""

    image_id: str
    file_hw: tuple[int, int]
    sha256: str  # of the raw file
    perceptual_hash: str  # hex, or empty


@dataclass(frozen=True)
class Labelling:
    """The labels of a prepared dataset, before they are written."""

    train: Sequence[LabelledImage]  # by image id
    test: Sequence[LabelledImage]  # by image id, without labels
    truth: Sequence[LabelledImage] | None  # the test part with its labels, where they are known
    groups: Mapping[str, str]  # image id -> its group of near-duplicates, named after the first of them
    folds: "pd.DataFrame"  # what each fold holds, for people
    rejects: Sequence[Reject]

    @property
    def near_duplicates(self) -> int:
        """Images that look like another one."""
        sizes = Counter(self.groups.values())
        return sum(sizes[group] > 1 for group in self.groups.values())

    @property
    def test_lookalikes(self) -> int:
        """Test images that look like a training image."""
        known = {self.groups[image.image_id] for image in self.train}
        return sum(self.groups[image.image_id] in known for image in self.test)


def heard_readers(found: Source, config: PrepareConfig) -> "pd.DataFrame":
    """Who read which image, of the readers that the options leave; raises InputError for a reader there is not."""
    known = sorted(set(found.readers["rad_id"]), key=lambda name: (len(name), name))  # R9 before R10
    for option, names in (("readers", config.readers), ("without-readers", config.without_readers)):
        unknown = [name for name in names if name not in known]
        if unknown:
            raise InputError(f"--{option} {unknown[0]}: no such reader; the readers are {', '.join(known)}")
    chosen = set(config.readers or known) - set(config.without_readers)
    if not chosen:
        raise InputError("--readers and --without-readers leave no reader; leave out one of the two")
    return found.readers[found.readers["rad_id"].isin(chosen)]


def wanted_images(found: Source, config: PrepareConfig) -> "pd.DataFrame":
    """The images worth decoding: read by a chosen reader, or listed in the sample submission."""
    heard = set(heard_readers(found, config)["image_id"])
    images = found.images
    is_train = (images["split"] == "train") & images["image_id"].isin(heard)
    return images[is_train | ((images["split"] == "test") & images["image_id"].isin(found.sample_submission))]


def label_images(
    found: Source,
    facts: Mapping[str, ImageFacts],
    config: PrepareConfig,
    *,
    on_rejects: Callable[[Sequence[Reject]], object] = lambda rejects: None,
) -> Labelling:
    """Labels of the images in `facts`; what cannot be used becomes a reject.

    `on_rejects` is called with all rejects before the folds are assigned, which raises InputError when too few images are left.
    """
    hw, rejects = _original_sizes(found, facts)
    heard = heard_readers(found, config)
    trios = {str(image_id): tuple(sorted(part)) for image_id, part in heard.groupby("image_id")["rad_id"]}
    images = found.images[found.images["image_id"].isin(hw)]
    paths = dict(zip(images["image_id"], images["path"], strict=True))
    train_ids = sorted(set(images.loc[images["split"] == "train", "image_id"]) & set(trios))
    test_ids = sorted(images.loc[images["split"] == "test", "image_id"])
    drawn = found.readings[found.readings["image_id"].isin(train_ids) & found.readings["rad_id"].isin(heard["rad_id"])]
    labelled, refused = fuse_images(train_ids, drawn, hw, paths, config)
    on_rejects([*rejects, *refused])
    hashes = {i: bytes.fromhex(facts[i].perceptual_hash) for i in (*labelled, *test_ids) if facts[i].perceptual_hash}
    groups = near_duplicate_groups(hashes, {i: facts[i].sha256 for i in (*labelled, *test_ids)})
    label_sets = {image_id: set(image.labels.tolist()) for image_id, image in labelled.items()}
    folds = (
        assign_folds(labelled, label_sets, trios, num_folds=config.num_folds, seed=config.seed, groups=groups)
        if labelled
        else {}
    )
    test = [_image(image_id, hw[image_id], config) for image_id in test_ids]
    return Labelling(
        train=[replace(image, fold=folds[image_id]) for image_id, image in labelled.items()],
        test=test,
        truth=None if found.truth is None else _with_truth(test, found.truth, config),
        groups=groups,
        folds=fold_table(folds, label_sets, trios, groups=groups),
        rejects=[*rejects, *refused],
    )


def fuse_images(
    image_ids: Sequence[str],
    drawn: "pd.DataFrame",
    hw: Mapping[str, tuple[int, int]],
    paths: Mapping[str, str],
    config: PrepareConfig,
) -> tuple[dict[str, LabelledImage], list[Reject]]:
    """Readings of these images by the readers who are heard, to the labelled images by id; the rest becomes rejects."""
    is_inside = _is_inside(drawn, hw)
    fused = fuse_readers(
        drawn[is_inside], method=config.fusion, iou_threshold=config.fusion_iou, min_readers=config.min_readers
    )
    lost = set(drawn.loc[~is_inside, "image_id"])
    labelled, refused = _labelled_images(image_ids, fused, hw, paths, config, lost=lost)
    return labelled, [*_beyond(drawn[~is_inside], hw, paths), *refused]


def _original_sizes(found: Source, facts: Mapping[str, ImageFacts]) -> tuple[dict[str, tuple[int, int]], list[Reject]]:
    """Original (height, width) of the images, and those whose file cannot be the image that the sizes speak of."""
    sizes: dict[str, tuple[int, int]] = {}
    rejects = []
    columns = (found.images[name].tolist() for name in ("image_id", "path", "height", "width"))
    for image_id, path, height, width in zip(*columns, strict=True):
        if image_id not in facts:
            continue
        file_hw = facts[image_id].file_hw
        told = None if np.isnan(height) or np.isnan(width) else (round(height), round(width))
        if told is not None and _is_another(file_hw, told, found.kind, path):
            reason = f"image of {file_hw[1]}x{file_hw[0]} pixels, but the labels say {told[1]}x{told[0]}"
            rejects.append(reject(path, 0, reason))
            continue
        sizes[image_id] = told or file_hw
    return sizes, rejects


def _is_another(file_hw: tuple[int, int], told_hw: tuple[int, int], kind: str, path: str) -> bool:
    """Whether a file cannot be the image of that size: a mirror's picture may be smaller, or squeezed to a square."""
    if file_hw == told_hw:
        return False
    if kind != "competition" or path.lower().endswith(DICOM_SUFFIXES):
        return True
    ratio = (file_hw[0] / file_hw[1]) / (told_hw[0] / told_hw[1])
    return file_hw[0] != file_hw[1] and abs(ratio - 1) > _RATIO_TOLERANCE


def _is_inside(readings: "pd.DataFrame", hw: Mapping[str, tuple[int, int]]) -> NDArray[np.bool_]:
    """Which boxes lie in their image, give or take a rounding."""
    corners = readings[list(COORDINATES)].to_numpy(np.float64)
    limits = np.array([hw[image_id] for image_id in readings["image_id"]], np.float64).reshape(-1, 2)[:, ::-1]
    slack = np.maximum(_SLACK * limits, _MIN_SLACK)
    inside: NDArray[np.bool_] = np.concatenate([corners[:, :2] >= -slack, corners[:, 2:] <= limits + slack], axis=1)
    return np.logical_and.reduce(inside, axis=1)


def _beyond(readings: "pd.DataFrame", hw: Mapping[str, tuple[int, int]], paths: Mapping[str, str]) -> list[Reject]:
    """What is said of boxes that do not lie in their image."""
    rejects = []
    for row in readings.to_dict("records"):
        (height, width), box = hw[row["image_id"]], _told(row[name] for name in COORDINATES)
        reason = f"box {box} of reader {row['rad_id']} reaches beyond an image of {width}x{height}"
        rejects.append(reject(paths[row["image_id"]], 0, reason))
    return rejects


def _told(corners: Iterable[float]) -> str:
    return " ".join(f"{value:g}" for value in corners)


def _image(image_id: str, original_hw: tuple[int, int], config: PrepareConfig, **labels: Any) -> LabelledImage:
    if labels:
        labels["boxes"] = to_prepared(labels["boxes_original"], original_hw, config.image_size, config.resize)
    return LabelledImage(image_id=image_id, fold=TEST_FOLD, original_hw=original_hw, **labels)


def _labelled_images(
    image_ids: Sequence[str],
    fused: "pd.DataFrame",
    hw: Mapping[str, tuple[int, int]],
    paths: Mapping[str, str],
    config: PrepareConfig,
    *,
    lost: Collection[str],
) -> tuple[dict[str, LabelledImage], list[Reject]]:
    """The training images by id, in the order of the ids; an image that loses all of its boxes is refused."""
    corners = fused[list(COORDINATES)].to_numpy(np.float64)
    rows_of = _rows_of(fused["image_id"].to_numpy(object))
    columns = {name: fused[name].to_numpy() for name in ("label", "readers", "rad_ids")}
    images, rejects = {}, []
    for image_id in image_ids:
        rows = rows_of.get(image_id)
        if rows is None:
            if image_id in lost:
                rejects.append(reject(paths[image_id], 0, ALL_REFUSED))
            else:
                images[image_id] = _image(image_id, hw[image_id], config)
            continue
        height, width = hw[image_id]
        boxes = clip(corners[rows], (height, width))
        inside = has_area(boxes, min_side=MIN_SIDE)
        for at in np.flatnonzero(~inside):
            reason = f"box {_told(corners[rows][at])} leaves no more than a pixel in an image of {width}x{height}"
            rejects.append(reject(paths[image_id], 0, reason))
        if not inside.any():
            rejects.append(reject(paths[image_id], 0, ALL_REFUSED))
            continue
        kept = rows[inside]
        images[image_id] = _image(
            image_id,
            hw[image_id],
            config,
            boxes_original=boxes[inside],
            labels=columns["label"][kept].astype(np.int64),
            readers=columns["readers"][kept].astype(np.int64),
            rad_ids=tuple(columns["rad_ids"][kept]),
        )
    return images, rejects


def _rows_of(values: NDArray[np.object_]) -> dict[str, NDArray[np.int64]]:
    """The rows of each value of a column, in order."""
    if not len(values):
        return {}
    text = values.astype(str)
    order = np.argsort(text, kind="stable")
    names, starts = np.unique(text[order], return_index=True)
    return dict(zip(names.tolist(), np.split(order, starts[1:]), strict=True))


def _with_truth(test: Sequence[LabelledImage], truth: "pd.DataFrame", config: PrepareConfig) -> list[LabelledImage]:
    """The test images with the labels that nothing is trained or tuned on."""
    rows_of = _rows_of(truth["image_id"].to_numpy(object))
    corners, labels = truth[list(COORDINATES)].to_numpy(np.float64), truth["label"].to_numpy(np.int64)
    images = []
    for image in test:
        rows = rows_of.get(image.image_id, np.zeros(0, np.int64))
        boxes = clip(corners[rows], image.original_hw) if len(rows) else EMPTY
        for at in np.flatnonzero(~has_area(boxes, min_side=MIN_SIDE)):
            raise InputError(
                f"test truth of {image.image_id}: box {_told(corners[rows][at])} leaves no more than a pixel in an image of "
                f"{image.original_hw[1]}x{image.original_hw[0]}; mend it, for no score may rest on a part of the truth"
            )
        known = {
            "boxes_original": boxes,
            "labels": labels[rows],
            "readers": np.zeros(len(rows), np.int64),  # a consensus, not a count
            "rad_ids": tuple(() for _ in rows),
        }
        images.append(_image(image.image_id, image.original_hw, config, **known))
    return images


# ---------------------------------------------------------------------------------------------------------------- files


def write_labels(labelling: Labelling, found: Source, output: str, config: PrepareConfig, *, suffix: str) -> None:
    """Writes `annotations/` and `sample_submission.csv`."""
    import pyarrow as pa

    folder = storage.join(output, "annotations")
    for name, content in _documents(labelling, found, config, suffix).items():
        storage.write_json(storage.join(folder, f"{name}.json"), content, compact=True)
    rows = [_table_row(image) for image in (*labelling.train, *labelling.test)]
    storage.write_table(
        storage.join(folder, "labels.parquet"), pa.Table.from_pylist(rows, schema=labels_table_schema())
    )
    for name, frame in (("readings", found.readings), ("readers", found.readers)):
        table = pa.Table.from_pandas(frame.sort_values(list(frame.columns)), preserve_index=False)
        storage.write_table(storage.join(folder, f"{name}.parquet"), table.replace_schema_metadata())
    entries = [
        {"image_id": image.image_id, "fold": image.fold, "group": labelling.groups[image.image_id]}
        for image in labelling.train
    ]
    storage.write_csv(storage.join(folder, "folds.csv"), entries, ("image_id", "fold", "group"))
    ids = [(image_id, "14 1 0 0 1 1") for image_id in found.sample_submission]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("image_id", "PredictionString"), *ids])
    storage.write_bytes(storage.join(output, "sample_submission.csv"), text.getvalue().encode())


# The files of `annotations/`, of augmented datasets too.
ANNOTATIONS = re.compile(
    r"(instances|originals)_(all|test|fold\d+)\.json|image_info_test\.json|(labels|readings|readers)\.parquet|folds\.csv"
)


def annotation_names(config: PrepareConfig, *, has_truth: bool) -> set[str]:
    """The files that `write_labels` puts into `annotations/`."""
    documents = {"instances_all", "image_info_test", *(f"instances_fold{k}" for k in range(config.num_folds))}
    documents |= {"instances_test"} if has_truth else set()
    return {f"{name}.json" for name in documents} | {
        "labels.parquet",
        "readings.parquet",
        "readers.parquet",
        "folds.csv",
    }


def _documents(labelling: Labelling, found: Source, config: PrepareConfig, suffix: str) -> dict[str, dict[str, Any]]:
    def document(part: Sequence[LabelledImage], *, has_truth: bool = True) -> dict[str, Any]:
        size, synthetic = config.image_size, found.synthetic
        return to_coco(part, image_size=size, synthetic=synthetic, has_truth=has_truth, suffix=suffix)

    train = document(labelling.train)
    documents = {"instances_all": train, "image_info_test": document(labelling.test, has_truth=False)}
    documents |= {f"instances_fold{k}": select_folds(train, {k}) for k in range(config.num_folds)}
    return documents if labelling.truth is None else documents | {"instances_test": document(labelling.truth)}


def _table_row(image: LabelledImage) -> dict[str, Any]:
    return {
        "image_id": image.image_id,
        "fold": image.fold,
        "original_hw": list(image.original_hw),
        "boxes": as_boxes(image.boxes).tolist(),
        "boxes_original": image.boxes_original.astype(float).tolist(),
        "labels": image.labels.tolist(),
        "readers": image.readers.tolist(),
        "rad_ids": [list(who) for who in image.rad_ids],
    }


def count(labelling: Labelling) -> dict[str, Any]:
    """Numbers of `dataset.json`."""
    per_class = Counter(int(label) for image in labelling.train for label in image.labels)
    return {
        "train_images": len(labelling.train),
        "normal_images": sum(len(image.labels) == 0 for image in labelling.train),
        "test_images": len(labelling.test),
        "boxes": sum(per_class.values()),
        "boxes_per_class": {name: per_class[label] for label, name in enumerate(CLASS_NAMES)},
        "near_duplicates": labelling.near_duplicates,
        "test_lookalikes": labelling.test_lookalikes,
    }
