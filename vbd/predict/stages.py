"""Prediction as a stream of Ray Data: a stage that decodes, and behind it pools of actors that hold the detectors.

What flows is a part, a fixed set of images, as one row: its pixels in each size that is still wanted, and what each detector
has found so far. Which images share a batch is thereby settled beforehand, so the result does not depend on the number of
workers, on who fails or on what was done before. The bytes in flight are bounded by Ray's object store.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from vbd.cluster.nodes import look
from vbd.cluster.placement import (
    Selector,
    check_decoding,
    check_workers,
    remote_args,
    selector_for,
    told_while_waiting,
    use_gpus,
)
from vbd.cluster.versions import check_versions
from vbd.config import RunOptions
from vbd.data.rejects import Reject
from vbd.errors import InputError
from vbd.predict.images import Item, Pixels, decode_items
from vbd.predict.models import Checkpoint, LoadedDetectors, TestTimeAugmentation
from vbd.records import detections_to_table

if TYPE_CHECKING:
    import pyarrow as pa
    import ray.data

Pools = Literal["auto", "own", "shared"]
# Cores that an actor or a decoding task asks for. Half a core: pools that took every core would wait for ever for the tasks
# that feed them.
_CORES = 0.5
# Of an actor in one of several pools: Ray joins stages that ask for the same, and all would be decoded by the first pool.
_CORES_IN_OWN_POOL = 0.4
_LEAST_CORES = 0.001  # without which no task or actor can start
# On CPUs a detector gets a pool of its own where there are so many cores for each: below, pools wait for each other.
_CORES_PER_POOL = 4


@dataclass(frozen=True)
class Pool:
    """Actors that all hold the same detectors."""

    members: tuple[int, ...]  # indices of the checkpoints
    actors: int


@dataclass(frozen=True)
class FoundPart:
    """What all detectors found in a part."""

    number: int
    tables: list["pa.Table"]  # of each checkpoint, by `detections_to_table`
    rejects: list[Reject]


def plan_pools(costs: Sequence[float], *, units: int, use_gpu: bool, pools: Pools = "auto") -> list[Pool]:
    """Shares `units` cores or GPUs out among detectors that cost so much for each image.

    With enough of them each detector has a pool of its own, the larger the more it costs, so that no actor holds another's
    weights. With fewer, one pool holds all: on a GPU without room for all they take turns.
    """
    enough = units >= len(costs) * (1 if use_gpu else _CORES_PER_POOL)
    if len(costs) == 1 or pools == "shared" or (pools == "auto" and not enough):
        return [Pool(tuple(range(len(costs))), max(1, units))]
    actors = [1] * len(costs)
    for _ in range(units - len(costs)):
        actors[max(range(len(costs)), key=lambda i: costs[i] / actors[i])] += 1
    return [Pool((i,), count) for i, count in enumerate(actors)]


def found_parts(
    parts: dict[int, list[Item]],
    checkpoints: Sequence[Checkpoint],
    *,
    options: RunOptions,
    augmentation: TestTimeAugmentation,
    workers: int | None = None,
    pools: Pools = "auto",
) -> Iterator[FoundPart]:
    """What the checkpoints find in each part, by number, as the parts come; needs a Ray connection.

    Raises InputError for what a user can mend, wherever it was found.
    """
    if not parts:
        return
    site = site_of(options, workers)
    with told_while_waiting({"CPU": _LEAST_CORES} | ({"GPU": 1} if site.use_gpu else {}), site.detecting):
        for row in _stream(parts, checkpoints, options, augmentation, site, pools).iter_rows():
            if row["fault"]:
                raise InputError(row["fault"])
            tables = [_table_of(row[_found(i)]) for i in range(len(checkpoints))]
            yield FoundPart(row["part"], tables, json.loads(row["rejects"]))


@dataclass(frozen=True)
class _Site:
    """Where a stream runs: on what, on which nodes, and how much of them there may be."""

    use_gpu: bool
    decoding: Selector
    detecting: Selector
    units: int  # cores or GPUs for detectors
    decoding_cores: float
    detecting_cores: float


def site_of(options: RunOptions, workers: int | None) -> _Site:
    """Where a stream runs on this cluster; raises InputError when decoding or detecting could never run anywhere."""
    use_gpu = use_gpus(options.device)
    detecting, decoding = selector_for("training", gpu=use_gpu), check_decoding(_LEAST_CORES)
    check_workers(
        1,
        {"CPU": _LEAST_CORES} | ({"GPU": 1} if use_gpu else {}),
        selector=detecting,
        what="detector process(es)",
        mend="--device cpu, or a cluster whose workers have it",
    )
    cluster = look()

    def there_may_be(resource: str, selector: Selector) -> float:
        # A cluster of which nobody knows how it grows: as much as is there.
        most = cluster.total(resource, selector)
        return cluster.total(resource, selector, now=True) if math.isinf(most) else most

    units = workers or int(there_may_be("GPU" if use_gpu else "CPU", detecting))
    return _Site(
        use_gpu,
        decoding,
        detecting,
        max(1, units),
        there_may_be("CPU", decoding) or 1,
        there_may_be("CPU", detecting) or 1,
    )


def _stream(
    parts: dict[int, list[Item]],
    checkpoints: Sequence[Checkpoint],
    options: RunOptions,
    augmentation: TestTimeAugmentation,
    site: _Site,
    pools: Pools,
) -> "ray.data.Dataset":
    import ray

    units = min(site.units, len(parts))
    planned = plan_pools([_cost(c) for c in checkpoints], units=units, use_gpu=site.use_gpu, pools=pools)
    wanted = list(dict.fromkeys(checkpoint.pixels for checkpoint in checkpoints))
    cores = _cores_of_actor(planned, cores=site.detecting_cores)
    rows = [{"part": number, "items": json.dumps(items)} for number, items in parts.items()]
    stream = ray.data.from_items(rows, override_num_blocks=len(rows))
    stream = stream.map(
        _decode,
        fn_kwargs={"wanted": wanted},
        num_cpus=min(_CORES, site.decoding_cores / 2),
        **remote_args(site.decoding),
    )
    for place, pool in enumerate(planned):
        later = {checkpoints[i].pixels for other in planned[place + 1 :] for i in other.members}
        stream = stream.map(
            _Detect,
            fn_constructor_args=([checkpoints[i] for i in pool.members], options, augmentation),
            fn_kwargs={
                "members": pool.members,
                "pixels": [wanted.index(checkpoints[i].pixels) for i in pool.members],
                "drop": [i for i, pixels in enumerate(wanted) if pixels not in later],
            },
            compute=ray.data.ActorPoolStrategy(size=pool.actors),
            num_cpus=cores,
            num_gpus=1 if site.use_gpu else 0,
            **remote_args(site.detecting),
        )
    return stream


def _cost(checkpoint: Checkpoint) -> float:
    """About how long an image takes, in no unit: weights times pixels."""
    facts = checkpoint.info.files.get("model.pt")
    size = facts.size if facts else 1
    return float(size) * checkpoint.info.config.image_size**2


def _cores_of_actor(planned: Sequence[Pool], *, cores: float) -> float:
    """At most half of all cores for all actors together, whatever the number of pools."""
    most = _CORES if len(planned) == 1 else _CORES_IN_OWN_POOL
    share = max(1.0, cores) / 2 / sum(pool.actors for pool in planned)
    return max(_LEAST_CORES, math.floor(1000 * min(most, share)) / 1000)


# --------------------------------------------------------------------------------------------------------- in a worker


def _decode(row: dict[str, Any], *, wanted: Sequence[Pixels]) -> dict[str, Any]:
    import cv2

    cv2.setNumThreads(0)  # the cores belong to the other tasks
    items = json.loads(row["items"])
    try:
        check_versions()
        part, fault = decode_items(items, wanted), ""
    except InputError as error:
        part, fault = decode_items([], wanted), str(error)
    squares = {_pixels(i): images.tobytes() for i, images in enumerate(part.squares)}
    shapes = json.dumps([images.shape for images in part.squares])
    return {
        "part": row["part"],
        "fault": fault,
        "image_ids": json.dumps([items[place]["image_id"] for place in part.places]),
        "places": json.dumps(part.places),
        "original_hw": json.dumps(part.original_hw),
        "rejects": json.dumps(part.rejects),
        "shapes": shapes,
    } | squares


class _Detect:
    """Lives in an actor; its detectors are loaded with the first part, so that a fault travels as a result."""

    def __init__(self, checkpoints: Sequence[Checkpoint], options: RunOptions, augmentation: TestTimeAugmentation):
        self._arguments = checkpoints, options, augmentation
        self._detectors: LoadedDetectors | None = None

    def __call__(
        self, row: dict[str, Any], *, members: Sequence[int], pixels: Sequence[int], drop: Sequence[int]
    ) -> dict[str, Any]:
        """The row with what each detector found, without the pixels that nobody after it wants."""
        rest = {name: value for name, value in row.items() if name not in {_pixels(i) for i in drop}}
        fault, found = row["fault"], {_found(i): b"" for i in members}
        if not fault:
            try:
                found = self._found(row, members, pixels)
            except InputError as error:
                fault = str(error)
        return rest | found | {"fault": fault}

    def _found(self, row: dict[str, Any], members: Sequence[int], pixels: Sequence[int]) -> dict[str, bytes]:
        if self._detectors is None:
            check_versions()
            self._detectors = LoadedDetectors(*self._arguments)
        places, shapes = json.loads(row["places"]), json.loads(row["shapes"])
        hw = [(int(height), int(width)) for height, width in json.loads(row["original_hw"])]
        found = {}
        for which, (member, wanted) in enumerate(zip(members, pixels, strict=True)):
            images = np.frombuffer(row[_pixels(wanted)], np.uint8).reshape(shapes[wanted])
            detections = self._detectors.detect(
                which, images, image_ids=json.loads(row["image_ids"]), original_hw=hw, places=places
            )
            found[_found(member)] = _bytes_of(detections_to_table(detections))
        return found


def _pixels(number: int) -> str:
    return f"pixels_{number}"


def _found(number: int) -> str:
    return f"found_{number}"


def _bytes_of(table: "pa.Table") -> bytes:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue().to_pybytes())


def _table_of(data: bytes) -> "pa.Table":
    import pyarrow as pa

    return pa.ipc.open_stream(data).read_all()
