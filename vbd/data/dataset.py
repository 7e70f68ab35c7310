"""A prepared dataset to batches: cached once per node, read at random, augmented by (seed, step, place in the batch).

The shards are copied once per node into one memory-mapped Arrow file, which all processes of the node share. What batch a
step sees is a function of the config and the step alone, so a run that stops and resumes sees the same data in the same
order, whatever the number of loader processes.
"""

import fcntl
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from vbd import storage
from vbd.augment.balance import BatchSampler, policy_factors, repeat_factors
from vbd.augment.policies import augment
from vbd.boxes import as_boxes
from vbd.config import TrainConfig
from vbd.data.images import decode_image, resize_square
from vbd.data.prepared import Part, PreparedDataset, in_part, iter_shards
from vbd.errors import InputError
from vbd.records import Batch, Row, Target

_COLUMNS = ("image_id", "fold", "image", "original_hw", "boxes", "labels", "readers")
# Where a batch's place stands: optimiser step, place in the batch, row of the table.
Place = tuple[int, int, int]


def cache_folder() -> Path:
    """Where a node keeps its copies of datasets: `VBD_CACHE`, or `~/.cache/vbd`."""
    return Path(os.environ.get("VBD_CACHE", "~/.cache/vbd")).expanduser()


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
                temporary = target.with_suffix(".tmp")
                _copy_shards(dataset, temporary)
                temporary.rename(target)
    except OSError as error:
        raise InputError(f"{folder}: cannot keep a copy of the dataset ({error}); set VBD_CACHE to a folder") from error
    return target


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


class Images(Dataset[Row]):
    """Random access to the rows of some part of a dataset, decoded, at the wanted size."""

    def __init__(self, dataset: PreparedDataset, part: Part, *, image_size: int, without_fold: int | None = None):
        """`part` as in `read_truths`; `without_fold` takes one fold out of `"train"`."""
        self.dataset = dataset
        self.image_size = image_size
        self._path = str(cache_rows(dataset))
        self._table: pa.Table | None = None
        folds = self.table["fold"].to_numpy()
        inside = in_part(folds, part) & (folds != without_fold if without_fold is not None else True)
        self._rows = np.flatnonzero(inside)
        if not len(self._rows):
            raise InputError(f"{dataset.location}: no images in {_part_name(part)}")

    @property
    def table(self) -> pa.Table:
        """The memory-mapped rows, opened by each process for itself."""
        if self._table is None:
            self._table = pa.ipc.open_file(pa.memory_map(self._path)).read_all()
        return self._table

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_table": None}

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        row = self.table.slice(int(self._rows[index]), 1).to_pylist()[0]
        image, boxes = decode_image(row["image"]), as_boxes(row["boxes"])
        if len(image) != self.image_size:
            boxes = boxes * np.float32(self.image_size / len(image))
            image = resize_square(image, self.image_size)
        return Row(
            image_id=row["image_id"],
            fold=row["fold"],
            image=image,
            original_hw=np.asarray(row["original_hw"], np.int64),
            boxes=boxes,
            labels=np.asarray(row["labels"], np.int64),
            readers=np.asarray(row["readers"], np.int64),
        )

    @property
    def image_ids(self) -> list[str]:
        """The ids, in the order of the indices."""
        return self.table["image_id"].take(self._rows).to_pylist()

    @property
    def label_sets(self) -> list[set[int]]:
        """The labels in each image, in the order of the indices; decodes nothing."""
        return [set(labels) for labels in self.table["labels"].take(self._rows).to_pylist()]


def _part_name(part: Part) -> str:
    return f"fold {part}" if isinstance(part, int) else f"the {part} part"


class _Places(Sampler[list[Place]]):
    """The places of each batch from one step to another, for one of `world` ranks that share each batch."""

    def __init__(self, sampler: BatchSampler, steps: range, *, rank: int, world: int):
        super().__init__()
        self.sampler, self.steps, self.rank, self.world = sampler, steps, rank, world

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[Place]]:
        for step in self.steps:
            places = [(step, place, int(index)) for place, index in enumerate(self.sampler.batch(step))]
            yield places[self.rank :: self.world]


class _Augmented(Dataset[Row]):
    """Rows after the policy: which transform a place gets depends on (seed, step, image id, place) alone."""

    def __init__(self, images: Images, config: TrainConfig):
        self.images, self.config = images, config
        is_normal = np.array([not labels for labels in images.label_sets])
        self._normal, self._abnormal = np.flatnonzero(is_normal), np.flatnonzero(~is_normal)

    def __getitem__(self, place: Place) -> Row:
        cv2.setNumThreads(0)  # the cores belong to the other trials
        step, slot, index = place
        row = self.images[index]
        rng = np.random.default_rng([self.config.seed, step, slot, storage.stable_hash(row["image_id"])])
        return augment(
            row, policy=self.config.policy, strength=self.config.strength, rng=rng, draw_partner=self._draw_partner
        )

    def _draw_partner(self, rng: np.random.Generator) -> Row:
        """Normal images are partners no oftener than they are batch mates: a mosaic of them would teach little."""
        pool = self._normal if len(self._normal) and rng.random() < self.config.normal_share else self._abnormal
        return self.images[int(pool[rng.integers(len(pool))])]


def collate(rows: Sequence[Row]) -> Batch:
    """Rows to tensors, 0..1: grey uint8 (H, W) becomes three equal channels without a copy for each, (H, W, 3) its own."""
    pixels = torch.from_numpy(np.stack([row["image"] for row in rows])).float().div_(255)
    return Batch(
        image_ids=[row["image_id"] for row in rows],
        images=pixels[:, None].expand(-1, 3, -1, -1) if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2),
        targets=[
            Target(boxes=torch.from_numpy(row["boxes"].astype(np.float32)), labels=torch.from_numpy(row["labels"]))
            for row in rows
        ],
    )


def training_sampler(images: Images, config: TrainConfig) -> BatchSampler:
    """Which images each step sees: the normal share, repeat factors, and what the policy multiplies."""
    label_sets = images.label_sets
    abnormal = [labels for labels in label_sets if labels]
    is_normal = np.array([not labels for labels in label_sets])
    factors = repeat_factors(abnormal, threshold=config.repeat_threshold)
    return BatchSampler(
        np.flatnonzero(~is_normal),
        np.flatnonzero(is_normal),
        factors=factors * policy_factors(abnormal, policy=config.policy, strength=config.strength),
        batch_size=config.batch_size,
        normal_share=config.normal_share,
        seed=config.seed,
    )


def training_batches(
    dataset: PreparedDataset,
    config: TrainConfig,
    *,
    first_step: int,
    loader_workers: int,
    rank: int = 0,
    world: int = 1,
) -> DataLoader[Batch]:
    """Batches of the steps `first_step` .. `config.steps - 1`, of all folds but the config's."""
    images = Images(dataset, "train", image_size=config.image_size, without_fold=config.fold)
    steps = range(first_step, config.steps)
    return DataLoader(
        _Augmented(images, config),  # type: ignore[arg-type]  # indexed by Place, through the batch sampler
        batch_sampler=_Places(training_sampler(images, config), steps, rank=rank, world=world),
        collate_fn=collate,
        num_workers=loader_workers,
        prefetch_factor=4 if loader_workers else None,
    )


def plain_batches(images: Images, indices: NDArray[np.int64], *, batch_size: int) -> Iterator[tuple[Batch, list[Row]]]:
    """Unaugmented batches, with the rows they were made of, in the order of `indices`."""
    for start in range(0, len(indices), batch_size):
        rows = [images[int(index)] for index in indices[start : start + batch_size]]
        yield collate(rows), rows
