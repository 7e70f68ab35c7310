"""A prepared dataset to batches: cached once per node, read at random, augmented by (seed, step, place in the batch).

The shards are copied once per node into one memory-mapped Arrow file, which all processes of the node share
(`dataset_cache`). What batch a step sees is a function of the config and the step alone, so a run that stops and resumes
sees the same data in the same order, whoever makes the batches: a thread beside the training thread or processes
(`loader`), or Ray Data on other nodes (`on_ray`).
"""

from collections.abc import Generator, Iterator, Sequence
from typing import Any, Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from vbd.augment.policies import augment
from vbd.config import ReaderFusion, TrainConfig
from vbd.config.phases import strength_at
from vbd.data.batches.cache import CachedRows
from vbd.data.batches.loader import made_by_processes, made_by_thread
from vbd.data.batches.sampling import TrainingSampler, choose_images, sampling_table
from vbd.data.images.prepare import resize_square
from vbd.data.labelling.relabel import read_labels, relabel
from vbd.data.prepared import Part, PreparedDataset, in_part
from vbd.errors import InputError
from vbd.hashing import stable_hash
from vbd.records import Batch, Row, Target

# The competition's images were read by three radiologists each.
_READERS = 3


class Images(Dataset[Row]):
    """Random access to the rows of some part of a dataset, decoded, at the wanted size."""

    def __init__(
        self,
        dataset: PreparedDataset,
        part: Part,
        *,
        image_size: int,
        without_fold: int | None = None,
        reader_fusion: ReaderFusion | Literal[""] = "",
    ):
        """`part` as in `read_truths`; `without_fold` takes one fold out of `"train"`; `reader_fusion` as in TrainConfig."""
        self.dataset = dataset
        self.image_size = image_size
        self._cached = CachedRows(dataset, relabel(dataset, reader_fusion))
        self._rows = _rows_of(self._cached.columns.folds, part, without_fold)
        if not len(self._rows):
            raise InputError(f"{dataset.location}: no images in {_part_name(part)}")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        row = self._cached.row(int(self._rows[index]))
        prepared_size = len(row["image"])
        if prepared_size == self.image_size:
            return row
        scale = np.float32(self.image_size / prepared_size)
        return row | {"image": resize_square(row["image"], self.image_size), "boxes": row["boxes"] * scale}

    @property
    def image_ids(self) -> list[str]:
        """The ids, in the order of the indices."""
        return [self._cached.columns.image_ids[row] for row in self._rows]

    @property
    def box_labels(self) -> list[list[int]]:
        """The label of every box in each image, in the order of the indices; decodes nothing."""
        return [self._cached.columns.labels.of(row).tolist() for row in self._rows]

    @property
    def label_sets(self) -> list[set[int]]:
        """The labels in each image, in the order of the indices; decodes nothing."""
        return [set(labels) for labels in self.box_labels]


def _rows_of(folds: NDArray[np.int64], part: Part, without_fold: int | None) -> NDArray[np.int64]:
    inside = in_part(folds, part)
    return np.flatnonzero(inside if without_fold is None else inside & (folds != without_fold))


def _part_name(part: Part) -> str:
    return f"fold {part}" if isinstance(part, int) else f"the {part} part"


class BatchMaker:
    """Makes the batch of any step, or the share of one of `world` ranks; goes to other processes by pickle."""

    def __init__(self, dataset: PreparedDataset, config: TrainConfig, *, rank: int = 0, world: int = 1):
        """Raises InputError when the config's fold or subset leaves no image to train on."""
        self.config, self.rank, self.world = config, rank, world
        self.images = Images(
            dataset,
            "train",
            image_size=config.image_size,
            without_fold=config.fold,
            reader_fusion=config.reader_fusion,
        )
        box_labels = self.images.box_labels
        chosen = choose_images(box_labels, config)
        self._normal, self._abnormal = chosen.normal, chosen.abnormal
        self._sampler = TrainingSampler(box_labels, config, world=world)

    def __call__(self, step: int) -> Batch:
        return collate(self.rows(step), self.config.agreement_weight)

    def rows(self, step: int) -> list[Row]:
        """The rows of our share of a step's batch, augmented; every `world`-th place of the batch is ours."""
        cv2.setNumThreads(0)  # the cores belong to the other trials
        places = list(enumerate(self._sampler.batch(step)))
        return [self._augmented(step, place, int(index)) for place, index in places[self.rank :: self.world]]

    def _augmented(self, step: int, place: int, index: int) -> Row:
        """The row after the policy: what it draws depends on (seed, step, place in the whole batch, image id) alone."""
        row = self.images[index]
        rng = np.random.default_rng([self.config.seed, step, place, stable_hash(row["image_id"])])
        policy, strength = self.config.policy, strength_at(step, self.config)
        try:
            return augment(row, policy=policy, strength=strength, rng=rng, draw_partner=self._draw_partner)
        except Exception as error:
            error.add_note(f"augmenting image {row['image_id']} at step {step}, place {place}, by policy {policy}")
            raise

    def _draw_partner(self, rng: np.random.Generator) -> Row:
        """Normal images are partners no oftener than they are batch mates: a mosaic of them would teach little."""
        pool = self._normal if len(self._normal) and rng.random() < self.config.normal_share else self._abnormal
        return self.images[int(pool[rng.integers(len(pool))])]


def collate(rows: Sequence[Row], agreement_weight: float = 0.0) -> Batch:
    """Rows to tensors, 0..1: grey uint8 (H, W) becomes three equal channels without a copy for each, (H, W, 3) its own.

    With an `agreement_weight` a target carries `weights`: (k / 3) ** agreement_weight for a box that k of 3 readers drew.
    """
    pixels = torch.from_numpy(np.stack([row["image"] for row in rows])).float().div_(255)
    return Batch(
        image_ids=[row["image_id"] for row in rows],
        images=pixels[:, None].expand(-1, 3, -1, -1) if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2),
        targets=[_target(row, agreement_weight) for row in rows],
    )


def _target(row: Row, agreement_weight: float) -> Target:
    target = Target(boxes=torch.from_numpy(row["boxes"].astype(np.float32)), labels=torch.from_numpy(row["labels"]))
    if agreement_weight > 0:
        shares = np.minimum(row["readers"], _READERS) / _READERS
        target["weights"] = torch.from_numpy((shares**agreement_weight).astype(np.float32))
    return target


def training_batches(
    dataset: PreparedDataset,
    config: TrainConfig,
    *,
    first_step: int,
    loader_workers: int,
    rank: int = 0,
    world: int = 1,
) -> Generator[Batch, None, None]:
    """Batches of the steps `first_step` .. `config.steps - 1`, of all folds but the config's.

    `loader_workers` processes make them ahead of the steps; 0 is a thread beside the training thread. Closing the iterator
    ends them. Raises InputError, here or while iterating, for what is wrong with the data, with its copy on this node or
    with a process of the loader.
    """
    maker = BatchMaker(dataset, config, rank=rank, world=world)
    steps = range(first_step, config.steps)
    if loader_workers:
        return made_by_processes(maker, steps, processes=loader_workers)
    return made_by_thread(maker, steps)


def describe_sampling(dataset: PreparedDataset, config: TrainConfig) -> str:
    """A table of what a run shows of each class, after the sampler's factors and the policy's; decodes nothing.

    The last columns: images of the class per epoch of the abnormal images, the share of its boxes among all shown, and
    images of it in 1,000 steps. The pictures that mosaic, cutmix and mixup add to an image are not counted.
    """
    table = read_labels(dataset, config.reader_fusion, ["fold", "labels"])
    labels: list[Any] = table["labels"].to_pylist()
    rows = _rows_of(table["fold"].to_numpy(), "train", config.fold)
    return sampling_table([labels[row] for row in rows], config)


def plain_batches(images: Images, indices: NDArray[np.int64], *, batch_size: int) -> Iterator[tuple[Batch, list[Row]]]:
    """Unaugmented batches, with the rows they were made of, in the order of `indices`."""
    for start in range(0, len(indices), batch_size):
        rows = [images[int(index)] for index in indices[start : start + batch_size]]
        yield collate(rows), rows
