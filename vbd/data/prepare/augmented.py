"""An augmented dataset on disk, to hand to others: images, COCO JSON, where each picture comes from, a contact sheet.

It holds each abnormal image as often as its policy says and each normal image once. The pictures are drawn by the very
functions that training draws with (`augment.policies`), each from a seed of its own that `provenance.csv` tells, so they do
not depend on the number of workers. Partners of a mixed picture come from the same fold, so that a fold stays unseen.
"""

import contextlib
import dataclasses
import functools
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vbd import storage
from vbd.augment.policies import TransformName, apply_transform, draw_transform, draws_of
from vbd.boxes import as_boxes
from vbd.cluster.placement import check_decoding
from vbd.cluster.tasks import count_in_ray, run_tasks
from vbd.config import Copies, ImageFormat, Layout, Policy, PrepareConfig, Seed, checked
from vbd.config.checked import check_rules
from vbd.config.difference import shortened
from vbd.console.last_line import tell
from vbd.data.coco import select_folds
from vbd.data.images.prepare import decode_image, encode_image, suffix_of
from vbd.data.labelling.label import ANNOTATIONS
from vbd.data.prepare.augmented_rows import PartFile, PlanFile, document, draw_contact_sheet
from vbd.data.prepare.dataset import bytes_of_images, check_is_ours, prepare
from vbd.data.prepared import TEST_FOLD, PreparedDataset, open_dataset, read_rows
from vbd.errors import InputError
from vbd.hashing import short_hash, stable_hash
from vbd.records import Row
from vbd.storage import deletion
from vbd.storage.ownership import own

if TYPE_CHECKING:
    import pyarrow as pa

_VERSION = 1
_MANIFEST, _PLAN = "augmented.json", "augmentation.json"
_BASE = "prepared"
_IMAGES_PER_TASK = 32
_PROVENANCE = ("file_name", "source", "transform", "copy", "seed", "partners", "fold", "boxes_in", "boxes_out")
_PART_NAME = re.compile(r"part-\d{5,}\.json")
_COUNTS = ("train_images", "normal_images", "boxes", "near_duplicates", "test_lookalikes")
_PICTURE_NAME = re.compile(r"__\d+-[a-z0-9]+$")


@dataclass(frozen=True)
class Augmentation:
    """What an augmented dataset is made by, besides the prepared one."""

    policy: Policy
    copies: Copies | None  # of each abnormal image, itself included; None is the policy's own number
    seed: Seed

    def pictures(self, labels: Sequence[int]) -> int:
        """How many pictures become of an image; that many may be far too many to list."""
        return self.copies if self.copies and len(labels) else len(self.transforms(labels))

    def transforms(self, labels: Sequence[int]) -> tuple[TransformName | None, ...]:
        """What becomes of an image, picture by picture; None is a draw of the policy."""
        if not len(labels) or self.policy == "A":
            return ("original",)
        if self.copies is not None:
            return ("original", *(None,) * (self.copies - 1))
        if self.policy == "E":
            return ("original", "competitors", "competitors", "competitors")
        return draws_of(self.policy, labels)


def prepare_and_materialise(
    source: str,
    output: str,
    config: PrepareConfig,
    *,
    policy: Policy | None = None,
    copies: int | None = None,
    layout: Layout = "auto",
    overwrite: bool = False,
    max_rejects: int | None = None,
    connect: Callable[[], object] = lambda: None,
) -> str:
    """Prepares raw data, and with a `policy` writes its augmented dataset. Returns a summary.

    `connect` is called before Ray is first needed.

    With a policy, `source` may be a prepared dataset; raw data are prepared into `prepared/` below the output first.
    """
    how: dict[str, Any] = {"layout": layout, "overwrite": overwrite, "max_rejects": max_rejects, "connect": connect}
    if policy is None:
        if copies is not None:
            raise InputError(f"--copies {copies}: only an augmented dataset has copies; add --policy")
        dataset = prepare(source, output, config, **how)
        return f"{storage.shown(output)}: {_counts_told(dataset)}"
    augmentation = Augmentation(policy, copies, config.seed)
    _check(augmentation)
    with contextlib.ExitStack() as owned:
        if storage.exists(storage.join(source, "dataset.json")):
            dataset = open_dataset(source)
            _check_options(dataset, config, source)
        else:
            base = storage.join(output, _BASE)
            _check_output(output, _told(augmentation), overwrite=overwrite)
            owned.enter_context(own(output, "prepare"))
            dataset = prepare(source, base, config, **how)
        # What was made of an earlier state of the same raw data is made anew where it has changed.
        is_own = dataset.location == storage.absolute(storage.join(output, _BASE))
        return materialise(dataset, output, augmentation, overwrite=overwrite, follow=is_own, connect=connect)


def _counts_told(dataset: PreparedDataset) -> str:
    counts, options = dataset.counts, dataset.options
    missing = next((name for name in _COUNTS if name not in counts), None)
    if missing:
        manifest = storage.join(dataset.location, "dataset.json")
        raise checked.wrong(manifest, f"no field counts.{missing}", again="prepare the dataset again")
    tell(**counts)
    return (
        f"{counts['train_images']:,} training images of {options.image_size} px ({counts['normal_images']:,} normal) in "
        f"{options.num_folds} folds, {counts['boxes']:,} boxes, {counts['test_images']:,} test images, "
        f"{counts['near_duplicates']:,} lookalikes, {counts['test_lookalikes']:,} of the test part, "
        f"{counts['rejects']:,} files and rows refused" + (" (synthetic)" if dataset.synthetic else "")
    )


def _check(augmentation: Augmentation) -> None:
    copies = augmentation.copies
    check_rules(augmentation, lambda name, value: f"--{name} {value}:")
    if augmentation.policy == "A" and copies not in (None, 1):
        raise InputError(f"--copies {copies}: policy A has nothing but the image itself; leave --copies out")


def _check_options(dataset: PreparedDataset, config: PrepareConfig, source: str) -> None:
    """Options of preparing that a dataset which is prepared already cannot follow."""
    default = PrepareConfig()
    for field in dataclasses.fields(config):
        wanted, have = getattr(config, field.name), getattr(dataset.options, field.name)
        if field.name != "seed" and wanted not in (getattr(default, field.name), have):
            raise InputError(f"--{field.name.replace('_', '-')} {wanted}: {source} is prepared already, with {have}")


# -------------------------------------------------------------------------------------------------------------- dataset


def materialise(
    dataset: PreparedDataset,
    output: str,
    augmentation: Augmentation,
    *,
    overwrite: bool = False,
    follow: bool = False,
    connect: Callable[[], object] = lambda: None,
) -> str:
    """Writes the augmented dataset and returns a summary; goes on where an earlier run was stopped.

    Raises InputError when the folder holds foreign files, or, unless `overwrite` is set, an augmented dataset by other
    options or, unless it is to `follow` the prepared one, of another prepared dataset.
    """
    _check(augmentation)
    told = _told(augmentation) | {"dataset": dataset.fingerprint}
    _check_output(output, {name: told[name] for name in told if name != "dataset" or not follow}, overwrite=overwrite)
    rows = read_rows(dataset, ["image_id", "fold", "labels"])
    train = [row for row in rows.to_pylist() if row["fold"] != TEST_FOLD]
    _check_ids([row["image_id"] for row in train], dataset)
    tasks = _tasks(train, told)
    with own(output, "prepare") as owner:
        stale = _stale(tasks, output)
        waiting = {image_id for task in stale for image_id in json.loads(task["image_ids"])}
        pictures = sum(augmentation.pictures(row["labels"]) for row in train if row["image_id"] in waiting)
        storage.need_space(output, bytes_of_images(pictures, dataset.options))
        options = {"location": dataset.location, "output": storage.absolute(output), "augmentation": augmentation}
        if stale:
            connect()
            check_decoding(1)
        storage.delete_file(storage.join(output, _MANIFEST))
        storage.write_json(storage.join(output, _PLAN), told)
        run_tasks(stale, _write_part, title=f"policy {augmentation.policy}", total=len(waiting), **options)
        owner.check()
        return _publish(dataset, output, augmentation, tasks)


def _told(augmentation: Augmentation) -> dict[str, Any]:
    """What `augmentation.json` holds, but for the dataset."""
    return dataclasses.asdict(augmentation) | {"version": _VERSION}


def _check_output(output: str, told: dict[str, Any], *, overwrite: bool) -> None:
    """Raises InputError for a folder with other files, or with an augmented dataset of which something `told` differs."""
    check_is_ours(output, _PLAN, what="augmented dataset", besides=(_BASE,))
    if overwrite or not storage.exists(storage.join(output, _PLAN)):
        return
    advice = "choose another --output, or pass --overwrite"
    old = dataclasses.asdict(checked.read(storage.join(output, _PLAN), PlanFile, again=advice))
    other = next((name for name, value in told.items() if old[name] != value), None)
    if other is not None:
        before, now = shortened(old[other]), shortened(told[other])
        raise InputError(f"{output}: holds an augmented dataset of {other} {before}, not {now}; {advice}")


def _check_ids(image_ids: Sequence[str], dataset: PreparedDataset) -> None:
    """An image named like a picture of ours would share its file; and its siblings may lie in other folds."""
    name = next((image_id for image_id in image_ids if _PICTURE_NAME.search(image_id)), None)
    if name is not None:
        raise InputError(f"{dataset.location}: image {name} is named like an augmented picture; augment the originals")


def _tasks(train: Sequence[dict[str, Any]], told: dict[str, Any]) -> list[dict[str, str]]:
    """Each with its name, the ids of its images, and a key of all that its pictures follow from."""
    tasks = []
    for number, start in enumerate(range(0, len(train), _IMAGES_PER_TASK)):
        image_ids = json.dumps([row["image_id"] for row in train[start : start + _IMAGES_PER_TASK]])
        key = short_hash(json.dumps([told, image_ids], sort_keys=True))
        tasks.append({"part": f"part-{number:05d}.json", "image_ids": image_ids, "key": key})
    return tasks


def _stale(tasks: Sequence[dict[str, str]], output: str) -> list[dict[str, str]]:
    """The tasks whose part or one of whose pictures is missing, or was made of something else.

    Deletes the pictures of parts that are: when the part has been made anew, nothing names them any more.
    """
    images = storage.join(output, "images")
    files, keys = storage.list_files(images), {task["part"]: task["key"] for task in tasks}
    there = sorted(filter(_PART_NAME.fullmatch, storage.list_files(storage.join(output, "parts"))))
    done: set[str] = set()
    wanted: set[str] = set()
    known: set[str] = set()
    for name, data in zip(there, storage.read_many([storage.join(output, "parts", n) for n in there]), strict=True):
        with contextlib.suppress(InputError):  # a broken part counts as none
            part = checked.parse(data, PartFile, where=name, again="")
            sizes = part.sizes
            known |= set(sizes)
            is_whole = all(each in files and files[each].size == size for each, size in sizes.items())
            if is_whole and part.key == keys.get(name):
                done, wanted = done | {name}, wanted | set(sizes)
    deletion.keep_only(images, wanted, known.__contains__)
    return [task for task in tasks if task["part"] not in done]


# -------------------------------------------------------------------------------------------------------------- workers


class _Images:
    """Random access to the training images of a prepared dataset; one in each worker process."""

    def __init__(self, location: str):
        dataset = open_dataset(location)
        self._folder = storage.join(dataset.location, "images")
        self._suffix = suffix_of(dataset.options.image_format)
        # Pictures have 8 bits; one that is no other than its image is that image's very file, unless it has 16.
        self.format: ImageFormat = "jpeg" if dataset.options.image_format == "jpeg" else "png"
        self.keeps_files = dataset.options.image_format != "png16"
        table = read_rows(dataset, ["image_id", "fold", "original_hw", "boxes", "labels", "readers"])
        self._table: pa.Table = table
        folds, labels = table["fold"].to_pylist(), table["labels"].to_pylist()
        self._places = {image_id: place for place, image_id in enumerate(table["image_id"].to_pylist())}
        self._abnormal: dict[int, list[str]] = {}
        for image_id, place in self._places.items():
            if labels[place] and folds[place] != TEST_FOLD:
                self._abnormal.setdefault(folds[place], []).append(image_id)

    def file(self, image_id: str) -> bytes:
        """The prepared file of an image."""
        return storage.read_bytes(storage.join(self._folder, f"{image_id}{self._suffix}"))

    def row(self, image_id: str) -> Row:
        """The image, decoded, with its labels."""
        row = self._table.slice(self._places[image_id], 1).to_pylist()[0]
        return Row(
            image_id=image_id,
            fold=row["fold"],
            image=decode_image(self.file(image_id)),
            original_hw=np.asarray(row["original_hw"], np.int64),
            boxes=as_boxes(row["boxes"]),
            labels=np.asarray(row["labels"], np.int64),
            readers=np.asarray(row["readers"], np.int64),
        )

    def partner(self, rng: np.random.Generator, fold: int) -> Row:
        """An abnormal image of a fold."""
        pool = self._abnormal[fold]
        return self.row(pool[rng.integers(len(pool))])


@functools.lru_cache(maxsize=1)
def _images(location: str, fingerprint: str) -> _Images:  # the fingerprint only names what is cached
    return _Images(location)


def _write_part(task: dict[str, Any], *, location: str, output: str, augmentation: Augmentation) -> dict[str, int]:
    """Runs in a Ray worker: the pictures of some images, then the part that describes them."""
    import cv2

    cv2.setNumThreads(0)  # one core per Ray task
    images = _images(location, open_dataset(location).fingerprint)
    rows, sizes = [], {}
    for image_id in json.loads(task["image_ids"]):
        source = images.row(image_id)
        for copy, transform in enumerate(augmentation.transforms(source["labels"].tolist())):
            row, data = _picture(images, source, copy, transform, augmentation)
            storage.write_bytes(storage.join(output, "images", row["file_name"]), data)
            rows.append(row)
            sizes[row["file_name"]] = len(data)
    told = {"key": task["key"], "rows": rows, "sizes": sizes}
    storage.write_json(storage.join(output, "parts", task["part"]), told, compact=True)
    count_in_ray("vbd_images_augmented", "Pictures written by jobs/prepare.py --policy", len(rows))
    return {"images": len(json.loads(task["image_ids"])), "pictures": len(rows)}


def _picture(
    images: _Images, source: Row, copy: int, transform: TransformName | None, augmentation: Augmentation
) -> tuple[dict[str, Any], bytes]:
    """One picture of an image: its row of the part, and its file."""
    seed = stable_hash(f"{augmentation.seed} {source['image_id']} {copy}")
    rng = np.random.default_rng(seed)
    name = transform or draw_transform(augmentation.policy, source["labels"].tolist(), strength=1.0, rng=rng)
    partners: list[Row] = []

    def draw_partner(generator: np.random.Generator) -> Row:
        partners.append(images.partner(generator, source["fold"]))
        return partners[-1]

    made = apply_transform(name, source, strength=1.0, rng=rng, draw_partner=draw_partner)
    is_copy = name == "original" and images.keeps_files
    data = images.file(source["image_id"]) if is_copy else encode_image(made["image"], images.format)
    return {
        "file_name": f"{source['image_id']}{f'__{copy}-{name}' if copy else ''}{suffix_of(images.format)}",
        "source": source["image_id"],
        "transform": name,
        "copy": copy,
        "seed": seed,
        "partners": [row["image_id"] for row in partners],
        "fold": source["fold"],
        "boxes_in": sum(len(row["boxes"]) for row in (source, *partners)),
        "boxes_out": len(made["boxes"]),
        "boxes": made["boxes"].astype(float).tolist(),
        "labels": made["labels"].tolist(),
        "readers": made["readers"].tolist(),
    }, data


# -------------------------------------------------------------------------------------------------------------- publish


def _publish(dataset: PreparedDataset, output: str, augmentation: Augmentation, tasks: Sequence[dict[str, str]]) -> str:
    """Merges the parts into COCO, provenance and contact sheet; the manifest comes last."""
    parts = storage.read_many([storage.join(output, "parts", task["part"]) for task in tasks])
    rows = [row for part in parts for row in json.loads(part)["rows"]]
    merged = document(rows, dataset)
    folds = range(dataset.options.num_folds)
    documents = {"instances_all": merged}
    documents |= {f"instances_fold{k}": select_folds(merged, {k}) for k in folds}
    # What to validate on: a fold as it is, without its augmented pictures.
    originals = document([row for row in rows if row["copy"] == 0], dataset)
    documents |= {f"originals_fold{k}": select_folds(originals, {k}) for k in folds}
    for name, content in documents.items():
        storage.write_json(storage.join(output, "annotations", f"{name}.json"), content, compact=True)
    told = [{name: row[name] for name in _PROVENANCE} | {"partners": " ".join(row["partners"])} for row in rows]
    storage.write_csv(storage.join(output, "provenance.csv"), told, _PROVENANCE)
    storage.write_bytes(
        storage.join(output, "contact_sheet.png"), draw_contact_sheet(rows, output, synthetic=dataset.synthetic)
    )
    for part, wanted, ours in (
        ("parts", {task["part"] for task in tasks}, _PART_NAME),
        ("annotations", {f"{name}.json" for name in documents}, ANNOTATIONS),
    ):
        deletion.keep_only(storage.join(output, part), wanted, ours.fullmatch)
    transforms = Counter(row["transform"] for row in rows)
    counts = {
        "pictures": len(rows),
        "images": len({row["source"] for row in rows}),
        "abnormal_images": len({row["source"] for row in rows if row["copy"] == 0 and row["labels"]}),
        "pictures_of_abnormal_images": sum(1 for row in rows if row["boxes_in"]),
        "boxes": sum(row["boxes_out"] for row in rows),
        "boxes_that_vanished": sum(row["boxes_in"] - row["boxes_out"] for row in rows),
        "transforms": dict(sorted(transforms.items())),
    }
    manifest = {"schema": _VERSION, "augmentation": dataclasses.asdict(augmentation), "dataset": dataset.fingerprint}
    storage.write_json(storage.join(output, _MANIFEST), manifest | {"synthetic": dataset.synthetic, "counts": counts})
    return (
        f"{storage.shown(output)}: policy {augmentation.policy}, {counts['pictures_of_abnormal_images']} pictures of "
        f"{counts['abnormal_images']} abnormal images, {counts['images'] - counts['abnormal_images']} normal images, "
        f"{counts['boxes']} boxes, {counts['boxes_that_vanished']} boxes vanished"
        + (" (synthetic)" if dataset.synthetic else "")
    )
