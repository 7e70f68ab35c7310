"""What a run learns from when it asks for another fusion of the readers than its dataset was prepared with.

The readers' boxes are kept beside the labels (`annotations/readings.parquet`), so no pixel is touched: they are fused as they
were when the dataset was prepared, by another method. Truths that a run is validated on never come from here.
"""

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, get_args

from vbd import storage
from vbd.boxes import as_boxes
from vbd.config import PrepareConfig, ReaderFusion
from vbd.data.labelling.label import fuse_images
from vbd.data.prepared import TEST_FOLD, PreparedDataset, of_chosen_readers, read_rows
from vbd.errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

_REPLACED = ("boxes", "labels", "readers")


def carried_fusions(dataset: PreparedDataset) -> tuple[ReaderFusion, ...]:
    """The methods by which a dataset's readings can be fused anew; none when no image has boxes of several readers."""
    return get_args(ReaderFusion) if _has_several(_readings(dataset.location, dataset.options)) else ()


def read_labels(dataset: PreparedDataset, method: ReaderFusion | Literal[""], columns: Sequence[str]) -> "pa.Table":
    """`prepared.read_rows`, with the training images' boxes, labels and readers by a method of fusion; '': as prepared."""
    relabelled = relabel(dataset, method)
    table = read_rows(dataset, columns)
    for name in _REPLACED:
        if relabelled is not None and name in columns:
            table = table.set_column(table.column_names.index(name), name, relabelled[name])
    return table


def relabel(dataset: PreparedDataset, method: ReaderFusion | Literal[""]) -> "pa.Table | None":
    """`image_id`, `boxes`, `labels` and `readers` of all images in the order of `read_rows`; None for '', as prepared.

    The other options, such as the IoU and the readers who are heard, stay the dataset's; test images keep their labels.
    Computed once in a process. Raises InputError for a dataset whose images carry the boxes of one reader each.
    """
    if not method:
        return None
    return _relabelled(dataset.location, dataset.fingerprint, replace(dataset.options, fusion=method))


@functools.lru_cache(maxsize=8)
def _relabelled(location: str, fingerprint: str, options: PrepareConfig) -> "pa.Table":
    import pyarrow as pa

    readings = _readings(location, options)
    if not _has_several(readings):
        raise InputError(
            f"{location}: carries the boxes of one reader only, so there is nothing to fuse by {options.fusion}; "
            "leave reader_fusion empty, or prepare a dataset with the boxes of each reader"
        )
    names = ("image_id", "fold", "original_hw", *_REPLACED)
    rows = storage.read_table(storage.join(location, "annotations", "labels.parquet"), list(names))
    ids, folds = rows["image_id"].to_pylist(), rows["fold"].to_pylist()
    hw = {i: tuple(sides) for i, sides in zip(ids, rows["original_hw"].to_pylist(), strict=True)}
    train = [image_id for image_id, fold in zip(ids, folds, strict=True) if fold != TEST_FOLD]
    drawn = readings[readings["image_id"].isin(train)]
    # An image whose boxes this method would leave nothing of, at the border, keeps those it was prepared with.
    fused, _ = fuse_images(train, drawn, hw, dict.fromkeys(train, ""), options)
    columns = {name: rows[name].to_pylist() for name in _REPLACED}
    for place, image_id in enumerate(ids):
        if image_id in fused:
            image = fused[image_id]
            columns["boxes"][place] = as_boxes(image.boxes).tolist()
            columns["labels"][place] = image.labels.tolist()
            columns["readers"][place] = image.readers.tolist()
    arrays = {name: pa.array(values, rows.schema.field(name).type) for name, values in columns.items()}
    return pa.table({"image_id": rows["image_id"]} | arrays)


def _readings(location: str, options: PrepareConfig) -> "pd.DataFrame":
    """What the readers drew that the options leave."""
    readings = storage.read_table(storage.join(location, "annotations", "readings.parquet")).to_pandas()
    return of_chosen_readers(readings, options)


def _has_several(readings: "pd.DataFrame") -> bool:
    """Whether some image has boxes of more than one reader."""
    return bool((readings.groupby("image_id")["rad_id"].nunique() > 1).any())
