"""The rows of a prepared dataset on this node: copied once, memory-mapped by every process, read at random.

A copy is one Arrow file in `cache_folder`, named by the dataset's fingerprint, so that another version of a dataset gets
another file. Old ones stay until somebody deletes them: `rm ~/.cache/vbd/*.arrow` (or in `VBD_CACHE`) is safe at any time,
runs that go on keep theirs open and the next one makes its own anew.
"""

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vbd.boxes import Boxes
from vbd.caches import private_folder, writable_folder
from vbd.data.images.headers import ImageError
from vbd.data.images.prepare import decode_image
from vbd.data.prepared import PreparedDataset, iter_shards
from vbd.errors import InputError
from vbd.records import Row

_COLUMNS = ("image_id", "fold", "image", "original_hw", "boxes", "labels", "readers")


def cache_folder() -> Path:
    """Where a node keeps its copies of datasets: `VBD_CACHE`, or `~/.cache/vbd`, or, in a read-only home, a temporary folder."""
    if chosen := os.environ.get("VBD_CACHE"):
        return Path(chosen).expanduser()
    folder = writable_folder("~/.cache/vbd") or private_folder("datasets")
    if folder is None:
        raise InputError(
            "~/.cache/vbd: neither this folder nor the temporary folder can be written to; set VBD_CACHE to a folder that "
            "can keep a copy of the dataset"
        )
    return folder


def cache_rows(dataset: PreparedDataset) -> Path:
    """The dataset's rows as one Arrow file on this node; made by the first process that asks, the others wait."""
    folder = cache_folder()
    target = folder / f"{dataset.fingerprint}.arrow"
    if target.exists():
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / f"{dataset.fingerprint}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not target.exists():
                _copy_whole(dataset, target)
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{folder}: cannot keep a copy of the dataset ({reason}); delete old *.arrow files there, or set VBD_CACHE "
            "to a folder with more room"
        ) from error
    return target


def _copy_whole(dataset: PreparedDataset, target: Path) -> None:
    temporary = target.with_suffix(".tmp")
    try:
        _copy_shards(dataset, temporary)
        temporary.rename(target)
    except BaseException:  # a full disk, a shard that cannot be read, Ctrl-C: the room is given back
        temporary.unlink(missing_ok=True)
        raise


def _copy_shards(dataset: PreparedDataset, target: Path) -> None:
    """One shard in memory at a time."""
    writer = None
    with pa.OSFile(str(target), "wb") as sink:
        for shard in iter_shards(dataset, [name for name in _COLUMNS if name != "image"]):
            table = shard.select(_COLUMNS)
            table = table.replace_schema_metadata().cast(_with_large_images(table.schema))
            writer = writer or pa.ipc.new_file(sink, table.schema)
            writer.write_table(table)
        if writer is None:
            raise InputError(f"{dataset.location}: the dataset has no shards; prepare it again")
        writer.close()


def _with_large_images(schema: pa.Schema) -> pa.Schema:
    """64-bit offsets: the images of a dataset may take more than 2 GB."""
    return schema.remove_metadata().set(schema.get_field_index("image"), pa.field("image", pa.large_binary()))


class CachedRows:
    """Random access to the rows of a dataset's copy on this node; each process opens the file for itself."""

    def __init__(self, dataset: PreparedDataset, labels: pa.Table | None = None):
        """`labels` (`relabelling.relabel`) stand in for those of the copy, and travel along to other processes."""
        self.path = cache_rows(dataset)
        self._labels = labels
        self._opened: _Opened | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}

    @property
    def columns(self) -> "_Opened":
        """The columns; raises InputError when the file is damaged."""
        if self._opened is None:
            self._opened = _open(self.path, self._labels)
        return self._opened

    def row(self, index: int) -> Row:
        """A row with its image decoded, at the size it was prepared; raises InputError when the image is damaged."""
        columns = self.columns
        return Row(
            image_id=columns.image_ids[index],
            fold=int(columns.folds[index]),
            image=self._image(index),
            original_hw=columns.original_hw[index].copy(),
            boxes=columns.boxes.of(index).copy(),
            labels=columns.labels.of(index).copy(),
            readers=columns.readers.of(index).copy(),
        )

    def _image(self, index: int) -> NDArray[np.uint8]:
        columns = self.columns
        chunk = int(np.searchsorted(columns.image_starts, index, side="right")) - 1
        data = columns.images[chunk][index - int(columns.image_starts[chunk])].as_py()
        try:
            return decode_image(data)
        except ImageError as error:
            image_id = columns.image_ids[index]
            raise InputError(f"{self.path}: image {image_id} cannot be decoded ({error}); {_MENDED}") from None


_MENDED = "the copy is damaged: delete this file, the next run makes it anew"


class _Ragged(NamedTuple):
    """A list for each row: values of all rows, and where each row's begin; the last offset ends the last row's."""

    values: NDArray[Any]
    offsets: NDArray[np.int64]

    def of(self, index: int) -> NDArray[Any]:
        return self.values[self.offsets[index] : self.offsets[index + 1]]


@dataclass(frozen=True)
class _Opened:
    """Everything but the pixels in memory, a few bytes for each box; the encoded images stay on the disk."""

    image_ids: list[str]
    folds: NDArray[np.int64]
    original_hw: NDArray[np.int64]  # (n, 2)
    boxes: _Ragged
    labels: _Ragged
    readers: _Ragged
    images: list[pa.LargeBinaryArray]  # a chunk for each shard, the first of whose rows is at
    image_starts: NDArray[np.int64]


def _open(path: Path, labels: pa.Table | None) -> _Opened:
    """Only the offsets of the images are looked at, not their bytes: those are checked when they are decoded."""
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        table.validate(full=True)
        if labels is not None:
            table = _with_labels(table, labels)
        chunks = table["image"].chunks
        return _Opened(
            image_ids=table["image_id"].to_pylist(),
            folds=table["fold"].to_numpy(),
            original_hw=np.asarray(table["original_hw"].combine_chunks().flatten(), np.int64).reshape(-1, 2),
            boxes=_boxes(table["boxes"].combine_chunks()),
            labels=_ragged(table["labels"].combine_chunks()),
            readers=_ragged(table["readers"].combine_chunks()),
            images=chunks,
            image_starts=np.cumsum([0, *(len(chunk) for chunk in chunks[:-1])]),
        )
    except FileNotFoundError:
        raise InputError(f"{path}: the copy of the dataset was deleted; start again, it is made anew") from None
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise InputError(f"{path}: not readable ({str(error).splitlines()[0]}); {_MENDED}") from error


def _with_labels(table: pa.Table, labels: pa.Table) -> pa.Table:
    """The rows with the columns of `labels`, joined by id: the copy is in the order of the shards."""
    place = pc.index_in(table["image_id"], labels["image_id"].combine_chunks())
    for name in ("boxes", "labels", "readers"):
        table = table.set_column(table.column_names.index(name), name, labels[name].take(place))
    return table


def _ragged(lists: pa.ListArray) -> _Ragged:
    offsets = lists.offsets.to_numpy().astype(np.int64)
    return _Ragged(np.asarray(lists.flatten(), np.int64), offsets - offsets[0])


def _boxes(lists: pa.ListArray) -> _Ragged:
    values: Boxes = np.asarray(lists.flatten().flatten(), np.float32).reshape(-1, 4)
    offsets = lists.offsets.to_numpy().astype(np.int64)
    return _Ragged(values, offsets - offsets[0])
