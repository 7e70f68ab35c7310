"""Distributed inference with Ray Data: every image is decoded once for all detectors, on whatever workers there are.

`write_predictions` is what a user asks for on the command line: files, and to be gone on with after a stop. `predict` is what
the rest of vbd asks for, in memory.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from vbd import storage
from vbd.config import RunOptions
from vbd.console.progress import Progress
from vbd.data.prepared import open_dataset, parse_part
from vbd.data.rejects import Reject
from vbd.errors import InputError
from vbd.predict.images import Item, images_in_folder, images_of_part
from vbd.predict.models import Checkpoint, TestTimeAugmentation, open_checkpoint
from vbd.predict.outputs import Extras, Found, write_extras
from vbd.predict.parts import Output
from vbd.predict.stages import Pools, found_parts, site_of
from vbd.records import Detections, detections_from_table, finds_nothing
from vbd.storage.ownership import own
from vbd.training.members import members_folder, read_manifest

# Images of a part, about: what is done again when a run was killed, and whose pixels travel together.
_PART_IMAGES = 16
_MOST_PART_IMAGES = 64


@dataclass(frozen=True)
class Predictions:
    """What each checkpoint found in each image that could be read, by image id; and the images that could not."""

    by_checkpoint: dict[str, list[Detections]]
    rejects: list[Reject]


def predict(
    checkpoints: Sequence[str],
    images: Sequence[Item],
    *,
    options: RunOptions,
    augmentation: TestTimeAugmentation = "none",
    workers: int | None = None,
    pools: Pools = "auto",
) -> Predictions:
    """Runs every checkpoint over every image; needs a Ray connection.

    An item whose height is 0 is a raw file; otherwise it is a prepared image and height and width are the original's.
    Raises InputError for a broken checkpoint, or one trained on images that were prepared in another way.
    The result is sorted by image id and does not depend on the number of workers.
    """
    opened = [open_checkpoint(folder, images) for folder in checkpoints]
    parts = dict(enumerate(parts_of(images, opened)))
    found = sorted(
        found_parts(parts, opened, options=options, augmentation=augmentation, workers=workers, pools=pools),
        key=lambda part: part.number,
    )
    return Predictions(
        {
            folder: [detections for part in found for detections in detections_from_table(part.tables[i])]
            for i, folder in enumerate(checkpoints)
        },
        [row for part in found for row in part.rejects],
    )


def parts_of(images: Sequence[Item], checkpoints: Sequence[Checkpoint]) -> list[list[Item]]:
    """Images by id, cut into parts that hold whole batches of every checkpoint, where such parts are not too large.

    Then a batch holds the images that it holds in training's validation, and is computed to the very same digits.
    """
    size = math.lcm(*(checkpoint.batch_size for checkpoint in checkpoints))
    size = size * -(-_PART_IMAGES // size) if size <= _MOST_PART_IMAGES else _PART_IMAGES
    ordered = sorted(images, key=lambda item: item["image_id"])
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


@dataclass(frozen=True)
class Request:
    """What is to be predicted, and where it goes. Checkpoints by the name of their table."""

    checkpoints: Mapping[str, str]
    images: str  # a folder of raw files, or a prepared dataset
    output: str
    part: str = "test"  # of a prepared dataset
    augmentation: TestTimeAugmentation = "none"
    extras: Extras = Extras()  # noqa: RUF009  # frozen


def write_predictions(
    request: Request,
    *,
    options: RunOptions,
    workers: int | None = None,
    overwrite: bool = False,
    connect: Callable[[], None] = lambda: None,
    say: Callable[[str], None] | None = None,
    finish: Callable[[], Found] | None = None,
) -> tuple[int, int]:
    """Detections of each checkpoint as a Parquet file in the output folder; returns how many images were read and refused.

    The same call goes on after a stop, and does nothing again that was finished. `connect` is called when a cluster is needed:
    what is wrong with the request is told before. Extras show what each checkpoint found, or what `finish` makes of it,
    which is called when all files are there. Raises InputError.
    """
    say = say or functools.partial(print, flush=True)
    if workers is not None and workers < 1:
        raise InputError(f"--workers {workers}: want 1 or more")
    items, what = images_of(request)
    request.extras.check(items)
    opened = {name: open_checkpoint(folder, items) for name, folder in request.checkpoints.items()}
    parts = parts_of(items, list(opened.values()))
    description = what | {
        "checkpoints": {name: _described(checkpoint) for name, checkpoint in opened.items()},
        "augmentation": request.augmentation,
    }
    output = Output(request.output, description, parts, names=list(opened), overwrite=overwrite)
    if output.is_finished:
        say(f"{request.output}: holds these predictions already")
    with contextlib.ExitStack() as owned:
        if not output.is_finished or finish:
            owner = owned.enter_context(own(request.output, "predict"))
        if not output.is_finished or request.extras.is_any:
            connect()
        if not output.is_finished:
            predictors = list(opened.values())
            _fill(output, parts, predictors, request, options=options, workers=workers, say=say, check=owner.check)
        for name, folder in request.checkpoints.items():
            found_in = detections_from_table(output.read(name))
            if finds_nothing(found_in):
                say(
                    f"warning: {folder}: finds nothing in all {len(found_in):,} images; is it trained, and on such images?"
                )
        finished = finish and [finish()]
    if request.extras.is_any:
        found = finished or [Found(name, checkpoint.title, output.read(name)) for name, checkpoint in opened.items()]
        write_extras(request.extras, found, items, images=request.images, say=say)
    return output.counts["images"], output.counts["rejects"]


def images_of(request: Request) -> tuple[list[Item], dict[str, Any]]:
    """The images, and which they are as far as a prediction is concerned."""
    if storage.exists(storage.join(request.images, "dataset.json")):
        dataset = open_dataset(request.images)
        part = parse_part(request.part)
        return images_of_part(dataset, part), {"dataset": dataset.fingerprint, "part": str(part)}
    return images_in_folder(request.images), {"folder": storage.absolute(request.images)}


def _described(checkpoint: Checkpoint) -> dict[str, Any]:
    info = checkpoint.info
    return {"config_hash": info.config_hash, "step": info.step, "sha256": checkpoint.sha256}


def _fill(
    output: Output,
    parts: Sequence[Sequence[Item]],
    checkpoints: Sequence[Checkpoint],
    request: Request,
    *,
    options: RunOptions,
    workers: int | None,
    say: Callable[[str], None],
    check: Callable[[], None],
) -> None:
    site_of(options, workers)  # refuses before the folder is begun
    missing = {number: list(parts[number]) for number in output.begin()}
    total, left = sum(map(len, parts)), sum(map(len, missing.values()))
    if left < total:
        say(f"{storage.shown(output.folder)}: {total - left} of {total} images were done before")
    stream = found_parts(missing, checkpoints, options=options, augmentation=request.augmentation, workers=workers)
    refused = 0
    with Progress("predict", left, unit="images") as progress:
        for found in stream:
            output.write(found)
            refused += len(found.rejects)
            progress.advance(len(missing[found.number]), note=f"{refused} refused")
    check()
    output.finish(say)


# --------------------------------------------------------------------------------------------------------- checkpoints


def name_checkpoints(folders: Sequence[str], run: str = "") -> dict[str, str]:
    """Checkpoint folders by the names that their tables get: those given, or all members of a run.

    A single one is called "detections". Raises InputError when there is none, both are given, or one comes twice.
    """
    if bool(folders) == bool(run):
        raise InputError("--checkpoint and --run: give one of them: checkpoint folders, or a run for all its members")
    if run:
        return _members_of(run)
    places = [storage.absolute(folder).rstrip("/") for folder in folders]
    twice = next((place for place in places if places.count(place) > 1), None)
    if twice is not None:
        raise InputError(f"--checkpoint {twice}: given twice")
    if len(places) == 1:
        return {"detections": places[0]}
    for depth in range(1, max(len(PurePosixPath(place).parts) for place in places)):
        names = ["-".join(PurePosixPath(place).parts[-depth:]) for place in places]
        if len(set(names)) == len(names):
            return dict(zip(names, places, strict=True))
    raise InputError(
        f"--checkpoint {', '.join(places)}: cannot be told apart by name; copy them to folders of other names"
    )


def _members_of(run: str) -> dict[str, str]:
    """The checkpoints in the manifest of a search's `best/` or of a training: `<member>`, or with its place among several."""
    named: dict[str, str] = {}
    for member in read_manifest(storage.absolute(members_folder(run))).members:
        for place, folder in enumerate(member.folders):
            named[member.name if len(member.folders) == 1 else f"{member.name}-{place}"] = folder
    return named
