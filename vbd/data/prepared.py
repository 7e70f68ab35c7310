"""A prepared dataset, read back: what it is, its truth, its images' sizes. Needs neither torch nor Ray."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from vbd import storage
from vbd.boxes import to_original
from vbd.commands import job_command
from vbd.config import PrepareConfig, checked
from vbd.config.checked import Count, Fields, Rule, SafeName
from vbd.data.coco import from_coco, read_coco
from vbd.errors import InputError
from vbd.labels import CLASS_NAMES
from vbd.records import Detections, Truth

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

SCHEMA = 2
TEST_FOLD = -1
# A fold number, all training images, or the test part.
Part = int | str


@dataclass(frozen=True)
class _Shard:
    name: SafeName


_HAS_COUNTS = Rule("the numbers test_images and rejects", {"test_images", "rejects"}.issubset)


@dataclass(frozen=True)
class _Manifest:
    """What `open_dataset` needs of `dataset.json`."""

    classes: Annotated[tuple[str, ...], Rule("the 14 findings of vbd", CLASS_NAMES.__eq__)]
    options: PrepareConfig
    fingerprint: str
    synthetic: bool
    counts: Annotated[dict[str, Any], Fields({"boxes_per_class": dict[str, Count]}, other=Count), _HAS_COUNTS]
    shards: tuple[_Shard, ...]


@dataclass(frozen=True)
class PreparedDataset:
    """What `dataset.json` says of the folder it lies in."""

    location: str
    classes: tuple[str, ...]
    options: PrepareConfig
    fingerprint: str
    synthetic: bool
    counts: dict[str, Any]
    shards: tuple[str, ...]


def open_dataset(location: str) -> PreparedDataset:
    """The prepared dataset in a folder; raises InputError when there is none, or one that is not finished."""
    manifest = storage.join(location, "dataset.json")
    if not storage.exists(manifest):
        names = storage.list_names(location)
        if "augmented.json" in names:
            raise InputError(
                f"{location}: an augmented dataset, made to be handed on; give the prepared one it was made of"
            )
        state = "preparing it was not finished" if "plan.json" in names else "no dataset.json"
        command = job_command("prepare", "--source", "RAW", "--output", location)
        raise InputError(f"{location}: not a prepared dataset ({state}); to prepare it, run: {command}")
    found = checked.read(manifest, _Manifest, schema=SCHEMA, again="prepare the dataset again")
    return PreparedDataset(
        location=storage.absolute(location),
        classes=found.classes,
        options=found.options,
        fingerprint=found.fingerprint,
        synthetic=found.synthetic,
        counts=found.counts,
        shards=tuple(shard.name for shard in found.shards),
    )


def labels_table_schema() -> "pa.Schema":
    """The columns of `annotations/labels.parquet`: one row for each image that could be used, of both parts."""
    import pyarrow as pa

    return pa.schema(
        {
            "image_id": pa.string(),
            "fold": pa.int64(),
            "original_hw": pa.list_(pa.int64(), 2),
            "boxes": pa.list_(pa.list_(pa.float32(), 4)),
            "boxes_original": pa.list_(pa.list_(pa.float64(), 4)),
            "labels": pa.list_(pa.int64()),
            "readers": pa.list_(pa.int64()),
            "rad_ids": pa.list_(pa.list_(pa.string())),
        }
    )


def read_rows(dataset: PreparedDataset, columns: Sequence[str]) -> "pa.Table":
    """Some columns of the labels of all images, training images by id and then test images by id; no pixels."""
    return storage.read_table(storage.join(dataset.location, "annotations", "labels.parquet"), list(columns))


def iter_shards(dataset: PreparedDataset, columns: Sequence[str]) -> "Iterator[pa.Table]":
    """Some columns of the labels of each shard's images, and `image`, the encoded file's bytes; a shard at a time."""
    import pyarrow.compute as pc

    labels = read_rows(dataset, ["image_id", *(name for name in columns if name != "image_id")]).combine_chunks()
    for name in dataset.shards:
        pixels = storage.read_table(storage.join(dataset.location, "shards", name), ["image_id", "image"])
        place = pc.index_in(pixels["image_id"], labels["image_id"].combine_chunks())
        # An image whose boxes were all refused has pixels and no labels.
        pixels, place = pixels.filter(place.is_valid()), place.drop_null()
        yield labels.take(place).select(list(columns)).append_column("image", pixels["image"])


def annotations_of(dataset: PreparedDataset, part: Part | str, *, with_truth: bool = True) -> str:
    """The COCO file of a part; without truth that of the test part lists its images alone, and is always there."""
    test = "instances_test" if with_truth else "image_info_test"
    name = {"train": "instances_all", "test": test}.get(str(part), f"instances_fold{part}")
    return storage.join(dataset.location, "annotations", f"{name}.json")


def image_numbers(dataset: PreparedDataset, part: Part | str) -> dict[str, int]:
    """The number of each image in the COCO file of a part; each file counts anew."""
    document = read_coco(annotations_of(dataset, part, with_truth=False))
    return {image["image_id"]: image["id"] for image in document["images"]}


def read_truths(dataset: PreparedDataset, part: Part) -> list[Truth]:
    """The ground truth of a fold, of all training images (`"train"`), or of the test part (`"test"`), by image id."""
    if isinstance(part, int) and not 0 <= part < dataset.options.num_folds:
        raise InputError(f"{dataset.location}: no fold {part}; it has folds 0 to {dataset.options.num_folds - 1}")
    location = annotations_of(dataset, part)
    if part == "test" and not storage.exists(location):
        raise InputError(f"{dataset.location}: the truth of the test part is not known here; score a fold instead")
    return from_coco(read_coco(location), where=location)


def image_sizes(dataset: PreparedDataset, part: Part) -> dict[str, tuple[int, int]]:
    """Original (height, width) of each image of a part, in order of image id."""
    table = read_rows(dataset, ["image_id", "fold", "original_hw"])
    ids, folds = table["image_id"].to_pylist(), table["fold"].to_numpy()
    sizes = dict(zip(ids, (tuple(hw) for hw in table["original_hw"].to_pylist()), strict=True))
    rows = np.flatnonzero(in_part(folds, part))
    if not len(rows):
        raise InputError(f"{dataset.location}: no images in part {part}; it has {dataset.options.num_folds} folds")
    return {ids[i]: sizes[ids[i]] for i in rows}


def of_chosen_readers(table: "pd.DataFrame", options: PrepareConfig) -> "pd.DataFrame":
    """The rows, by their `rad_id`, of the readers that a dataset was prepared with: readings, or who read what."""
    is_chosen = table["rad_id"].isin(options.readers) if options.readers else True
    return table[is_chosen & ~table["rad_id"].isin(options.without_readers)]


def parse_part(text: str) -> Part:
    """`test`, `train` or a fold number, as a command line gives it."""
    if text in ("test", "train"):
        return text
    if not (text.isdecimal() and len(text) < 10):
        raise InputError(f"--part {text}: want test, train or a fold number")
    return int(text)


def in_part(folds: np.ndarray, part: Part) -> np.ndarray:
    """Which rows belong to a part: (n,) fold numbers -> (n,) bool."""
    if part == "train":
        return folds != TEST_FOLD
    return folds == (TEST_FOLD if part == "test" else part)


def sample_submission_ids(dataset: PreparedDataset) -> list[str]:
    """Ids of the test images in the order that a submission must keep."""
    text = storage.read_bytes(storage.join(dataset.location, "sample_submission.csv")).decode()
    return [line.split(",")[0] for line in text.splitlines()[1:]]


def to_detections(
    image_id: str,
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    *,
    original_hw: tuple[int, int],
    image_size: int,
    options: PrepareConfig,
) -> Detections:
    """A detector's boxes in pixels of its square input, as detections in pixels of the original image."""
    return Detections(
        image_id,
        to_original(boxes.reshape(-1, 4), original_hw, image_size, options.resize),
        scores.astype(np.float32),
        labels.astype(np.int64),
    )
