"""Raw files to a prepared dataset: the images by `shards`, the labels by `vbd.data.labelling`, published whole.

`plan.json` is written first and `dataset.json` last: a folder without it is unfinished, and the same command goes on.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from vbd import storage
from vbd.cluster.placement import check_decoding
from vbd.config import ImageFormat, Layout, PrepareConfig, check_prepare_config, checked
from vbd.config.difference import shortened
from vbd.data.images.prepare import suffix_of
from vbd.data.labelling.folds import TooFewError
from vbd.data.labelling.label import (
    ANNOTATIONS,
    ImageFacts,
    annotation_names,
    count,
    label_images,
    wanted_images,
    write_labels,
)
from vbd.data.prepare.shards import (
    Found,
    Receipt,
    Shard,
    look_around,
    pixel_key,
    plan_shards,
    read_receipts,
    stale_shards,
    write_shards,
)
from vbd.data.prepared import SCHEMA, PreparedDataset, open_dataset
from vbd.data.rejects import REJECT_COLUMNS, Reject, reject, reject_reasons
from vbd.data.sources.read import describe, read_source
from vbd.data.sources.tables import Source
from vbd.errors import InputError, StoreError
from vbd.hashing import short_hash
from vbd.labels import CLASS_NAMES
from vbd.storage import deletion
from vbd.storage.ownership import others, own

_MANIFEST, _PLAN, _REJECTS, _SAMPLE = "dataset.json", "plan.json", "rejects.csv", "sample_submission.csv"
# Another number when the same readings and images would give other labels or folds than before.
_LABELS_VERSION = 1
_MAX_REASONS = 20


@dataclass(frozen=True)
class _Plan:
    """What `plan.json` holds."""

    options: PrepareConfig


def prepare(
    source: str,
    output: str,
    config: PrepareConfig,
    *,
    layout: Layout = "auto",
    overwrite: bool = False,
    max_rejects: int | None = None,
    connect: Callable[[], object] = lambda: None,
) -> PreparedDataset:
    """Reads a folder of raw X-rays and writes a prepared dataset; `connect` is called before Ray is first needed.

    What lies in `output` already is kept: images whose raw file is unchanged are not decoded again, whether the run before
    was stopped or some files have changed since. Raises InputError when `output` holds a dataset of other options or of
    other images and `overwrite` is not set, and when more than `max_rejects` files and rows are refused.
    """
    check_prepare_config(config)
    if max_rejects is not None and max_rejects < 0:
        raise InputError(f"--max-rejects {max_rejects}: want 0 or more")
    _check_source(source, output)
    found = read_source(source, layout)
    print(f"{storage.shown(source)}: {describe(found)}", flush=True)
    suffix = suffix_of(config.image_format)
    shards = plan_shards(wanted_images(found, config), config.shard_size)
    image_ids = {row["image_id"] for shard in shards for row in shard.rows}
    check_is_ours(output, _PLAN, what="dataset")

    def look() -> tuple[Found, list[Shard]]:
        earlier = look_around(output, pixel_key(config))
        if not overwrite:
            _check_is_this_one(output, config, image_ids, earlier)
        return earlier, stale_shards(shards, earlier, suffix, retry=overwrite)

    earlier, stale = look()
    if not stale and _is_whole(output, _inputs(found, config, earlier.by_image.values())):
        print(f"{storage.shown(output)}: up to date", flush=True)
        _check_rejects(storage.read_csv(storage.join(output, _REJECTS)), output, max_rejects)
        return open_dataset(output)
    storage.need_space(output, 2 * bytes_of_images(sum(len(shard.rows) for shard in stale), config))
    with own(output, "prepare") as owner:
        earlier, stale = look()  # again: another job may have ended here meanwhile
        if stale:
            connect()
            check_decoding(1)
            _begin(output, config)
        deletion.remove_leftovers(output)
        if stale:
            # Before new receipts take the place of those that name them.
            _keep_images(output, {f"{image_id}{suffix}" for image_id in image_ids}, earlier.image_ids)
        write_shards(stale, earlier, output, config, suffix=suffix)
        owner.check()
        known = set(earlier.image_ids)
        return _publish(found, output, config, shards=shards, known=known, max_rejects=max_rejects)


def _begin(output: str, config: PrepareConfig) -> None:
    """From here on the folder holds no dataset until it is published."""
    storage.delete_file(storage.join(output, _MANIFEST))
    storage.write_json(storage.join(output, _PLAN), {"schema": SCHEMA, "options": dataclasses.asdict(config)})


def bytes_of_images(images: int, config: PrepareConfig) -> int:
    """About how much room so many prepared images take."""
    per_pixel = {"png": 0.75, "png16": 1.8, "jpeg": 0.4}[config.image_format] * (
        2.5 if config.channels == "composed" else 1
    )
    return round(images * per_pixel * config.image_size**2)


def _check_source(source: str, output: str) -> None:
    """Raises InputError for raw data that lie where the output is to be, or that are a dataset of ours, half made.

    The raw data are never written to, nor below or above them, where clearing the output would take them along.
    """
    raw, prepared = Path(storage.absolute(source)), Path(storage.absolute(output))
    raw = raw.parent if source.endswith(".json") else raw  # whose images lie beside it and below
    if raw == prepared or raw in prepared.parents or prepared in raw.parents:
        raise InputError(f"{output}: lies in the same place as the raw data in {source}; choose another --output")
    names = storage.list_names(source) if storage.exists(source) and not source.endswith(".json") else []
    for begun, finished in ((_PLAN, _MANIFEST), ("augmentation.json", "augmented.json")):
        if begun in names and finished not in names:
            raise InputError(f"{source}: making this dataset was not finished; finish it before it is used as a source")


def check_is_ours(output: str, plan: str, *, what: str, besides: Collection[str] = ()) -> None:
    """Raises InputError for a folder with files of somebody else, or one that leads elsewhere.

    Ours is a folder with the file `plan`, or with nothing in it `besides` some names.
    """
    names = [name for name in others(storage.list_names(output)) if not name.endswith(".tmp")]
    if plan not in names and not set(names) <= set(besides):
        raise InputError(f"{output}: holds other files and no {what} of ours; choose an empty --output")
    for name in names:
        if storage.is_local(output) and Path(storage.absolute(output), name).is_symlink():
            raise InputError(
                f"{output}/{name}: a link to another place, which would be written over; choose another --output"
            )


def _check_is_this_one(output: str, config: PrepareConfig, image_ids: set[str], earlier: Found) -> None:
    """Raises InputError when the folder holds a dataset that this one would replace."""
    if not storage.exists(storage.join(output, _PLAN)):
        return
    advice = "choose another --output, or pass --overwrite"
    old = checked.read(storage.join(output, _PLAN), _Plan, schema=SCHEMA, again=advice).options
    if old != config:
        other = next(name for name, value in dataclasses.asdict(config).items() if getattr(old, name) != value)
        before, now = (shortened(getattr(options, other)) for options in (old, config))
        name = other.removeprefix("num_").replace("_", " ")
        raise InputError(f"{output}: holds a dataset with {name} {before}, not {now}; {advice}")
    known = set(earlier.by_image)
    if len(image_ids & known) < len(known) / 2:
        raise InputError(f"{output}: holds a dataset of other images; {advice}")


def _inputs(found: Source, config: PrepareConfig, receipts: Iterable[Receipt]) -> str:
    """What the whole dataset follows from, as sixteen hex digits: options, label files, and the content of the images."""
    content = sorted((item.image_id, item.sha256, item.refused) for item in receipts)
    origin = [SCHEMA, _LABELS_VERSION, found.kind, found.synthetic, found.fingerprint]
    text = json.dumps([origin, dataclasses.asdict(config), content], sort_keys=True)
    return short_hash(text)


def _is_whole(output: str, inputs: str) -> bool:
    """Whether the dataset of these inputs is there, with all of its files but the images, which `stale_shards` looks at."""
    try:
        manifest = storage.read_object(storage.join(output, _MANIFEST))
    except StoreError:
        raise
    except InputError:  # missing or broken
        return False
    return manifest.get("inputs") == inputs and manifest.get("files") == _files(output)


def _files(output: str) -> dict[str, int]:
    """Sizes of the files beside the images: a copy that was cut short is not whole."""
    annotations = storage.list_files(storage.join(output, "annotations"))
    sizes = {f"annotations/{name}": facts.size for name, facts in annotations.items()}
    top = storage.list_files(output)
    return sizes | {name: top[name].size for name in (_REJECTS, _SAMPLE) if name in top}


# ------------------------------------------------------------------------------------------------------------- publish


def _publish(
    found: Source,
    output: str,
    config: PrepareConfig,
    *,
    shards: Sequence[Shard],
    known: set[str],
    max_rejects: int | None,
) -> PreparedDataset:
    """Everything but the pixels; `dataset.json` comes last and makes the dataset whole.

    `known` are the ids of images that earlier runs have prepared here.
    """
    receipts = read_receipts(output, shards, pixel_key(config))
    paths = {row["image_id"]: row["path"] for shard in shards for row in shard.rows}
    facts = {
        item.image_id: ImageFacts(item.image_id, item.original_hw, item.sha256, item.perceptual_hash)
        for item in receipts
        if not item.refused
    }
    undecoded = [reject(paths[item.image_id], 0, item.refused) for item in receipts if item.refused]
    rejects = [*found.rejects, *_unlisted(found), *undecoded]

    def write_rejects(of_labels: Sequence[Reject]) -> None:
        rejects.extend(of_labels)
        storage.write_csv(storage.join(output, _REJECTS), rejects, REJECT_COLUMNS)
        _check_rejects(rejects, output, max_rejects)

    try:
        labelling = label_images(found, facts, config, on_rejects=write_rejects)
    except TooFewError as error:
        told = f"; {len(rejects):,} files and rows were refused, see {output}/{_REJECTS}" if rejects else ""
        raise InputError(f"{error}{told}") from None
    if not any(len(image.labels) for image in labelling.train):
        raise InputError(_nothing_left(output, found, rejects, config))
    _begin(output, config)
    suffix = suffix_of(config.image_format)
    write_labels(labelling, found, output, config, suffix=suffix)
    wanted = {f"{image_id}{suffix}" for image_id in facts}
    _keep_images(output, wanted, {item.image_id for item in receipts} | known)  # before the receipts that name them
    names = annotation_names(config, has_truth=labelling.truth is not None)
    for part, kept, ours in (
        ("shards", {f"{shard.name}.parquet" for shard in shards}, re.compile(r"shard-\d{5,}\.parquet")),
        ("receipts", {f"{shard.name}.json" for shard in shards}, re.compile(r"shard-\d{5,}\.json")),
        ("annotations", names, ANNOTATIONS),
    ):
        deletion.keep_only(storage.join(output, part), kept, ours.fullmatch)
    print(labelling.folds.T.to_string(), flush=True)
    manifest = {
        "schema": SCHEMA,
        "classes": CLASS_NAMES,
        "options": dataclasses.asdict(config),
        "fingerprint": _fingerprint(receipts, output, config),
        "inputs": _inputs(found, config, receipts),
        "files": _files(output),
        "source": {"kind": found.kind, "fingerprint": found.fingerprint},
        "synthetic": found.synthetic,
        "counts": count(labelling) | {"rejects": len(rejects)},
        "shards": [{"name": f"{shard.name}.parquet", "rows": len(shard.rows)} for shard in shards],
    }
    storage.write_json(storage.join(output, _MANIFEST), manifest)
    return open_dataset(output)


def _keep_images(output: str, wanted: set[str], image_ids: Collection[str]) -> None:
    """Deletes the prepared images of these ids that are not wanted."""
    ours = {f"{image_id}{suffix_of(image_format)}" for image_id in image_ids for image_format in get_args(ImageFormat)}
    deletion.keep_only(storage.join(output, "images"), wanted, ours.__contains__)


def _nothing_left(output: str, found: Source, rejects: Sequence[Reject], config: PrepareConfig) -> str:
    if not len(found.readings):
        return (
            f"{output}: the {found.kind} layout was read, and no label in it is a finding; check --source and --layout"
        )
    if rejects:
        return f"{output}/{_REJECTS}: no image with a finding is left, {len(rejects)} refusals; mend these files"
    return (
        f"{output}: --min-readers {config.min_readers}, --readers and --without-readers leave no finding; ask for less"
    )


def _check_rejects(rejects: Sequence[Reject], output: str, max_rejects: int | None) -> None:
    reasons = reject_reasons(rejects)
    for kind, times, example in reasons[:_MAX_REASONS]:
        print(f"refused {times} x: {kind} ({example})" if kind not in example else f"refused {times} x: {example}")
    if len(reasons) > _MAX_REASONS:
        print(
            f"refused for {len(reasons) - _MAX_REASONS} more reasons; see {storage.join(storage.shown(output), _REJECTS)}"
        )
    if max_rejects is not None and len(rejects) > max_rejects:
        raise InputError(
            f"{output}/{_REJECTS}: {len(rejects)} files and rows refused, more than --max-rejects {max_rejects}; "
            f"most often: {reasons[0][2]}"
        )


def _fingerprint(receipts: Sequence[Receipt], output: str, config: PrepareConfig) -> str:
    """Of what is trained on: the prepared images and their labels, not how they were cut into shards."""
    options = {name: value for name, value in dataclasses.asdict(config).items() if name != "shard_size"}
    digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode())
    for item in sorted(receipts, key=lambda item: item.image_id):
        digest.update(b"" if item.refused else f"{item.image_id} {item.prepared_sha256}\n".encode())
    for name in ("instances_all.json", "image_info_test.json"):
        digest.update(storage.read_bytes(storage.join(output, "annotations", name)))
    return digest.hexdigest()[:16]


def _unlisted(found: Source) -> list[Reject]:
    """Test images that the sample submission does not ask for: nothing may be submitted for them."""
    test = found.images[found.images["split"] == "test"]
    return [
        reject(path, 0, "not listed in sample_submission.csv, so it is not predicted")
        for path in sorted(test[~test["image_id"].isin(found.sample_submission)]["path"])
    ]
