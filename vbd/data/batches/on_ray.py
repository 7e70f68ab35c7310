"""The batches of a run made by Ray Data on the cluster's CPUs, for a training process whose own node has few.

Every rank streams its own shares of the batches: a task for each step reads the images from the copy of the dataset on
its node, decodes and augments them, and sends them as bytes through the object store; the training process makes tensors
of them, in a thread. A task does what `BatchMaker` does, so the batches are those of `training_batches`. Every node must
see the dataset: on NFS or in an object store.
"""

import contextlib
import functools
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from vbd.cluster.placement import remote_args, selector_for
from vbd.cluster.versions import check_versions
from vbd.config import TrainConfig
from vbd.data.batches.loader import made_by_thread
from vbd.data.batches.make import BatchMaker, collate
from vbd.data.prepared import PreparedDataset, open_dataset
from vbd.errors import InputError, StoreError
from vbd.records import Batch, Row

if TYPE_CHECKING:
    import ray.data

# Steps of one dataset of Ray Data, which plans all of its tasks, a millisecond each, before it starts the first.
_SEGMENT = 1000
# Batches in flight: for each CPU that makes them, and beside those.
_AHEAD_PER_CPU, _AHEAD = 2, 4
# Between two looks of Ray Data at its tasks. It does not rest where all that it may make ahead is made, as is mostly so
# here, and would keep the training thread, which shares the interpreter with it, waiting.
_REST_S = 0.005
# How long the first task may wait for a CPU: where others take turns on all of them, one becomes free sooner.
_PATIENCE_S = 120.0


@dataclass(frozen=True)
class _Share:
    """What a task must know to make our share of a step's batch, and to be found again by the next task."""

    location: str
    fingerprint: str
    config: TrainConfig
    rank: int
    world: int


def ray_batches(
    dataset: PreparedDataset,
    config: TrainConfig,
    *,
    first_step: int,
    loader_workers: int,
    rank: int = 0,
    world: int = 1,
) -> Generator[Batch, None, None]:
    """The batches of `training_batches`, made by tasks on the cluster; for a worker of Ray Train or any other driver.

    At most `loader_workers` tasks run at a time, 0: as many as there are free CPUs. Closing the iterator ends them. Raises
    InputError when no CPU is free for a task, and for what is wrong with the data.
    """
    import ray

    maker = BatchMaker(dataset, config, rank=rank, world=world)  # here too, so that a mistake is told before any task
    _need_a_cpu()
    share = _Share(dataset.location, dataset.fingerprint, config, rank, world)
    images = len(range(rank, config.batch_size, world))
    tasks = loader_workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
    room = (_AHEAD_PER_CPU * tasks + _AHEAD) * images * maker.images[0]["image"].nbytes
    return _batches(share, range(first_step, config.steps), images, tasks=loader_workers, room=room)


def _need_a_cpu() -> None:
    """Raises InputError when every CPU of the cluster is held; Ray Data would wait for one without a word."""
    import ray

    if ray.available_resources().get("CPU", 0) >= 1:
        return
    # Other tasks may hold them, another rank's among these, and give them back: then this one gets its turn.
    where = remote_args(selector_for("decoding"))
    probe = ray.remote(num_cpus=1, scheduling_strategy="SPREAD", max_retries=0, **where)(_nothing).remote()
    if not ray.wait([probe], timeout=_PATIENCE_S)[0]:
        ray.cancel(probe, force=True)
        total = ray.cluster_resources().get("CPU", 0)
        raise InputError(
            f"no CPU is free to make batches: all {total:g} of the cluster were held for {_PATIENCE_S:g} s; free one "
            "(fewer trials, workers or threads), or use --input loader"
        )


def _nothing() -> None:
    pass


def _batches(share: _Share, steps: range, images: int, *, tasks: int, room: int) -> Generator[Batch, None, None]:
    with contextlib.ExitStack() as stack:
        rows = stack.enter_context(contextlib.closing(_rows(share, steps, tasks=tasks, room=room)))
        # Tensors are made ahead of the steps as well. `rows` come in the order of the steps.
        make = functools.partial(_next_batch, rows, images, share.config.agreement_weight)
        yield from stack.enter_context(contextlib.closing(made_by_thread(make, steps)))


def _next_batch(rows: Iterator[tuple[int, Row]], images: int, agreement_weight: float, step: int) -> Batch:
    numbered = [next(rows) for _ in range(images)]
    if any(number != step for number, _ in numbered):
        raise RuntimeError(f"rows of steps {[number for number, _ in numbered]} came at step {step}")
    return collate([row for _, row in numbered], agreement_weight)


def _rows(share: _Share, steps: range, *, tasks: int, room: int) -> Generator[tuple[int, Row], None, None]:
    """The step and row of each image of our share, step by step; raises InputError for what a task says is wrong."""
    for place in range(0, len(steps), _SEGMENT):
        segment = steps[place : place + _SEGMENT]
        # A block is one batch or, of a large batch, a part.
        blocks = _dataset(share, segment, tasks=tasks, room=room).iter_batches(batch_size=None, batch_format="pyarrow")
        tables: Any = iter(blocks)
        with contextlib.closing(tables):  # a generator, whose end stops the tasks
            for table in tables:
                yield from map(_row, table.to_pylist())


def _dataset(share: _Share, steps: range, *, tasks: int, room: int) -> "ray.data.Dataset":
    """A block, and so a task, for each step; computed when it is read, in order, at most `room` bytes ahead."""
    import ray
    from ray.data import ExecutionOptions, ExecutionResources

    context = ray.data.DataContext.get_current()
    before = context.execution_options, context.enable_progress_bars, context.custom_execution_callback_classes
    limits = ExecutionResources.for_limits(cpu=tasks or None, object_store_memory=room)
    context.execution_options = ExecutionOptions(resource_limits=limits, preserve_order=True)
    context.enable_progress_bars = False
    context.custom_execution_callback_classes = [*context.custom_execution_callback_classes, _Rest]
    try:
        numbers = ray.data.range(len(steps), override_num_blocks=len(steps))
        return numbers.map_batches(
            _make_rows,
            batch_size=None,
            batch_format="pyarrow",
            fn_kwargs={"share": share, "first_step": steps.start},
            num_cpus=1,
            **remote_args(selector_for("decoding")),
        )
    finally:
        context.execution_options, context.enable_progress_bars, context.custom_execution_callback_classes = before


class _Rest:
    """What Ray Data calls while it runs a dataset."""

    def before_execution_starts(self, executor: object) -> None:
        pass

    def on_execution_step(self, executor: object) -> None:
        time.sleep(_REST_S)

    def after_execution_succeeds(self, executor: object) -> None:
        pass

    def after_execution_fails(self, executor: object, error: Exception) -> None:
        pass


_SCHEMA = pa.schema(
    {
        "step": pa.int64(),
        "fault": pa.string(),
        "may_pass": pa.bool_(),
        "image_id": pa.string(),
        "fold": pa.int64(),
        "shape": pa.list_(pa.int64()),
        **dict.fromkeys(("image", "original_hw", "boxes", "labels", "readers"), pa.large_binary()),
    }
)


def _make_rows(numbers: pa.Table, *, share: _Share, first_step: int) -> pa.Table:
    """In a task: the rows of our share of a batch. What a user can mend travels as a result, to keep its type."""
    packed = []
    for number in numbers["id"].to_pylist():
        step = first_step + number
        try:
            check_versions()
            packed += [_pack(step, row) for row in _maker(share).rows(step)]
        except InputError as error:
            packed.append({"step": step, "fault": str(error), "may_pass": isinstance(error, StoreError)})
    return pa.Table.from_pylist(packed, schema=_SCHEMA)


@functools.lru_cache(maxsize=4)
def _maker(share: _Share) -> BatchMaker:
    """Once for each of Ray's worker processes: it opens the copy on its node, or makes it."""
    dataset = open_dataset(share.location)
    if dataset.fingerprint != share.fingerprint:
        raise InputError(f"{share.location}: the dataset was prepared anew while a run reads it; start the run again")
    return BatchMaker(dataset, share.config, rank=share.rank, world=share.world)


def _pack(step: int, row: Row) -> dict[str, Any]:
    arrays = {name: row[name].tobytes() for name in _TYPES}  # type: ignore[literal-required]
    return {"step": step, "image_id": row["image_id"], "fold": row["fold"], "shape": row["image"].shape, **arrays}


_TYPES = {"image": np.uint8, "original_hw": np.int64, "boxes": np.float32, "labels": np.int64, "readers": np.int64}


def _row(packed: dict[str, Any]) -> tuple[int, Row]:
    if packed["fault"]:
        raise (StoreError if packed["may_pass"] else InputError)(packed["fault"])
    arrays = {name: np.frombuffer(packed[name], kind).copy() for name, kind in _TYPES.items()}
    return packed["step"], Row(
        image_id=packed["image_id"],
        fold=packed["fold"],
        image=arrays["image"].reshape(packed["shape"]),
        original_hw=arrays["original_hw"],
        boxes=arrays["boxes"].reshape(-1, 4),
        labels=arrays["labels"],
        readers=arrays["readers"],
    )
