"""Raw files to a prepared dataset, sharded over the cluster by Ray Data.

Ray carries paths in and small numbers out. Pixels never enter the object store: each worker decodes the images of one
shard, writes them, and then writes the shard's Parquet file whole. A shard that exists is finished, so a run that was
stopped goes on where it was. The JSON files are merged from the shards at the end, `dataset.json` last. What a shard holds
depends on the sorted image ids alone, so the bytes are the same whatever the number of workers.
"""

import contextlib
import dataclasses
import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vbd import storage
from vbd.boxes import EMPTY, as_boxes, clip, has_area, to_prepared
from vbd.config import PrepareConfig, check_prepare_config
from vbd.data.coco import LabelledImage, select_folds, to_coco
from vbd.data.folds import assign_folds
from vbd.data.images import encode_png, prepare_pixels
from vbd.data.prepared import SCHEMA, TEST_FOLD, PreparedDataset, open_dataset
from vbd.data.readers import fuse_readers
from vbd.data.sources import Source, read_source
from vbd.errors import InputError, StoreError
from vbd.labels import CLASS_NAMES
from vbd.rejects import REJECT_COLUMNS

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

Entry = dict[
    str, Any
]  # one image of the plan: image_id, path, fold, original_hw or None, boxes, labels, readers, rad_ids
Reject = dict[str, Any]  # REJECT_COLUMNS
_SECONDS_BETWEEN_LINES = 2


def prepare(source: str, output: str, config: PrepareConfig, *, overwrite: bool = False) -> PreparedDataset:
    """Reads a folder of raw X-rays and writes a prepared dataset; needs a Ray connection.

    Does nothing when `output` already holds the same dataset, goes on when it holds an unfinished part of it, and raises
    InputError when it holds another one and `overwrite` is not set.
    """
    check_prepare_config(config)
    found = read_source(source)
    print(f"{source}: {found.kind}, {len(found.images)} images, {len(found.readings)} boxes", flush=True)
    plan = _fingerprint(found, config)
    _keep_apart(source, output)
    if overwrite:
        _clear(output)
    if _is_up_to_date(output, plan):
        print(f"{output}: up to date", flush=True)
        return open_dataset(output)
    storage.need_space(output, 3 * len(found.images) * config.image_size**2 // 2)
    shards = _plan(found, config)
    storage.write_json(storage.join(output, "plan.json"), {"plan": plan})
    _write_shards(shards, output, config, plan=plan)
    return _publish(found, output, config, shard_names=[name for name, _ in shards], plan=plan)


def _fingerprint(found: Source, config: PrepareConfig) -> str:
    text = json.dumps([SCHEMA, found.fingerprint, dataclasses.asdict(config)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _keep_apart(source: str, output: str) -> None:
    """The raw data are never written to, nor below or above them, where clearing the output would take them along."""
    raw, prepared = Path(storage.absolute(source)), Path(storage.absolute(output))
    if raw == prepared or raw in prepared.parents or prepared in raw.parents:
        raise InputError(f"{output}: lies in the same place as the raw data in {source}; choose another --output")


def _clear(output: str) -> None:
    """Removes what an earlier run wrote, and nothing else; the manifest first and the plan last."""
    for name in ("dataset.json", "rejects.csv", "sample_submission.csv"):
        storage.delete_file(storage.join(output, name))
    for name in ("annotations", "images", "shards"):
        storage.delete_folder(storage.join(output, name))
    storage.delete_file(storage.join(output, "plan.json"))


def _is_up_to_date(output: str, plan: str) -> bool:
    """Whether the folder holds this very dataset, whole; raises InputError when it holds another one or foreign files."""
    names = storage.list_names(output)
    if "plan.json" not in names and names:
        raise InputError(f"{output}: holds other files and no dataset of ours; choose an empty --output")
    if "plan.json" in names and storage.read_object(storage.join(output, "plan.json")).get("plan") != plan:
        raise InputError(
            f"{output}: holds a dataset of other images or options; choose another --output, or pass --overwrite"
        )
    return "dataset.json" in names


# ---------------------------------------------------------------------------------------------------------------- plan


def _plan(found: Source, config: PrepareConfig) -> list[tuple[str, list[Entry]]]:
    """Every shard with its name and its entries: train images by id, then test images by id."""
    entries = [*_train_entries(found, config), *_test_entries(found)]
    size = config.shard_size
    return [
        (f"shard-{number:05d}.parquet", entries[start : start + size])
        for number, start in enumerate(range(0, len(entries), size))
    ]


def _train_entries(found: Source, config: PrepareConfig) -> Iterator[Entry]:
    images = found.images[found.images["split"] == "train"].sort_values("image_id")
    if images.empty:
        return
    ids = images["image_id"].tolist()
    fused = fuse_readers(found.readings, method=config.fusion, iou_threshold=config.fusion_iou)
    boxes_of = dict(iter(fused.groupby("image_id", sort=False)))
    labels_of = {image_id: set(boxes_of[image_id]["label"]) if image_id in boxes_of else set() for image_id in ids}
    trios: dict[str, tuple[str, ...]] = {
        str(image_id): tuple(sorted(part)) for image_id, part in found.readers.groupby("image_id")["rad_id"]
    }
    folds = assign_folds(ids, labels_of, trios, num_folds=config.num_folds, seed=config.seed)
    for image in images.to_dict("records"):
        yield _entry(image, boxes_of.get(image["image_id"]), fold=folds[image["image_id"]])


def _test_entries(found: Source) -> Iterator[Entry]:
    images = found.images[found.images["split"] == "test"].sort_values("image_id")
    images = images[images["image_id"].isin(found.sample_submission)]
    for image in images.to_dict("records"):
        yield _entry(image, None, fold=TEST_FOLD)


def _entry(image: Mapping[Any, Any], boxes: "pd.DataFrame | None", *, fold: int) -> Entry:
    known = not (np.isnan(image["height"]) or np.isnan(image["width"]))
    return {
        "image_id": image["image_id"],
        "path": image["path"],
        "fold": fold,
        "original_hw": [int(image["height"]), int(image["width"])] if known else None,
        "boxes": [] if boxes is None else boxes[["x_min", "y_min", "x_max", "y_max"]].to_numpy(float).tolist(),
        "labels": [] if boxes is None else boxes["label"].tolist(),
        "readers": [] if boxes is None else boxes["readers"].tolist(),
        "rad_ids": [] if boxes is None else [list(who) for who in boxes["rad_ids"]],
    }


# ------------------------------------------------------------------------------------------------------------- workers


def _finished_shards(output: str, plan: str) -> set[str]:
    """The shards that belong to this plan and can be read; what else is there is written anew."""
    folder, done = storage.join(output, "shards"), set()
    for name in storage.list_names(folder):
        with contextlib.suppress(InputError):
            metadata = storage.read_table(storage.join(folder, name), ["image_id"]).schema.metadata or {}
            done |= {name} if metadata.get(b"plan") == plan.encode() else set()
    return done


def _write_shards(shards: Sequence[tuple[str, list[Entry]]], output: str, config: PrepareConfig, *, plan: str) -> None:
    import ray

    done = _finished_shards(output, plan)
    tasks = [{"shard": name, "entries": json.dumps(entries)} for name, entries in shards if name not in done]
    if not tasks:
        return
    started, total = time.monotonic(), sum(len(entries) for name, entries in shards if name not in done)
    results = ray.data.from_items(tasks, override_num_blocks=len(tasks)).map(
        _write_shard, fn_kwargs={"output": storage.absolute(output), "config": config, "plan": plan}, num_cpus=1
    )
    seen = rejects = 0
    told = started
    for result in results.iter_rows():
        seen, rejects = seen + result["images"], rejects + result["rejects"]
        now = time.monotonic()
        if now - told >= _SECONDS_BETWEEN_LINES or seen == total:
            told, rate = now, seen / (now - started)
            left = (total - seen) / rate
            print(
                f"prepare: {seen}/{total} images, {rate:.0f} images/s, {rejects} refused, {left:.0f} s left", flush=True
            )


def _write_shard(task: dict[str, Any], *, output: str, config: PrepareConfig, plan: str) -> dict[str, int]:
    """Runs in a Ray worker: decodes and writes the images of one shard, then the shard."""
    import cv2
    import pyarrow as pa

    cv2.setNumThreads(0)  # one core per Ray task
    entries, rows, rejects = json.loads(task["entries"]), [], []
    for entry in entries:
        row, refused = _prepare_image(entry, output, config)
        rows += [row] if row else []
        rejects += refused
    # The digest is of what training reads, so that a dataset's fingerprint is that of its content.
    digest = hashlib.sha256(repr(rows).encode()).hexdigest()
    told = {"plan": plan, "digest": digest, "rejects": json.dumps(rejects)}
    table = pa.Table.from_pylist(rows, schema=_shard_schema()).replace_schema_metadata(told)
    storage.write_table(storage.join(output, "shards", task["shard"]), table)
    return {"images": len(entries), "rejects": len(rejects)}


def _shard_schema() -> "pa.Schema":
    import pyarrow as pa

    return pa.schema(
        {
            "image_id": pa.string(),
            "fold": pa.int64(),
            "image": pa.binary(),
            "original_hw": pa.list_(pa.int64(), 2),
            "boxes": pa.list_(pa.list_(pa.float32(), 4)),
            "boxes_original": pa.list_(pa.list_(pa.float64(), 4)),
            "labels": pa.list_(pa.int64()),
            "readers": pa.list_(pa.int64()),
            "rad_ids": pa.list_(pa.list_(pa.string())),
        }
    )


def _prepare_image(entry: Entry, output: str, config: PrepareConfig) -> tuple[dict[str, Any] | None, list[Reject]]:
    """One image decoded, written and described; or nothing, and why."""
    try:
        data = storage.read_bytes(entry["path"])
        pixels, file_hw = prepare_pixels(data, name=entry["path"], image_size=config.image_size, mode=config.resize)
    except StoreError:
        raise  # the file may be fine: the job stops here, and goes on when it is run again
    except InputError as error:
        return None, [_reject(entry["path"], str(error).removeprefix(f"{entry['path']}: "))]
    original_hw = tuple(entry["original_hw"] or file_hw)
    boxes = clip(np.asarray(entry["boxes"], float).reshape(-1, 4), original_hw)
    inside = has_area(boxes, min_side=1.0)
    rejects = [
        _reject(
            entry["path"],
            f"box {entry['boxes'][i]} leaves nothing inside an image of {original_hw[0]} x {original_hw[1]}",
        )
        for i in np.flatnonzero(~inside)
    ]
    if len(boxes) and not inside.any():
        return None, [*rejects, _reject(entry["path"], "all of its boxes were refused, and it is not normal")]
    png = encode_png(pixels)
    storage.write_bytes(storage.join(output, "images", f"{entry['image_id']}.png"), png)
    keep = np.flatnonzero(inside)
    return {
        "image_id": entry["image_id"],
        "fold": entry["fold"],
        "image": png,
        "original_hw": list(original_hw),
        "boxes": to_prepared(boxes[keep], original_hw, config.image_size, config.resize).tolist(),
        "boxes_original": boxes[keep].astype(float).tolist(),
        **{name: [entry[name][i] for i in keep] for name in ("labels", "readers", "rad_ids")},
    }, rejects


def _reject(file: str, reason: str) -> Reject:
    return dict(zip(REJECT_COLUMNS, (file, 0, reason), strict=True))


# ------------------------------------------------------------------------------------------------------------- publish


def _publish(
    found: Source, output: str, config: PrepareConfig, *, shard_names: Sequence[str], plan: str
) -> PreparedDataset:
    """Merges the shards into the JSON files; `dataset.json` comes last and makes the dataset whole."""
    import pyarrow as pa

    columns = [name for name in _shard_schema().names if name != "image"]
    tables = [storage.read_table(storage.join(output, "shards", name), columns) for name in shard_names]
    refused = [item for table in tables for item in json.loads(table.schema.metadata[b"rejects"])]
    rejects = [*found.rejects, *_unlisted(found), *refused]
    storage.write_csv(storage.join(output, "rejects.csv"), rejects, REJECT_COLUMNS)
    images = [_labelled(row) for table in tables for row in table.to_pylist()]
    if not any(len(image.labels) for image in images):
        raise InputError(
            f"{output}/rejects.csv: no image with a finding is left, {len(rejects)} refusals; mend these files"
        )
    _write_annotations(found, output, config, images)
    ids = ["image_id,PredictionString", *(f"{i},14 1 0 0 1 1" for i in found.sample_submission)]
    storage.write_bytes(storage.join(output, "sample_submission.csv"), ("\n".join(ids) + "\n").encode())
    for name, frame in (("readings", found.readings), ("readers", found.readers)):
        table = pa.Table.from_pandas(frame.sort_values(list(frame.columns)), preserve_index=False)
        storage.write_table(storage.join(output, "annotations", f"{name}.parquet"), table.replace_schema_metadata())
    manifest = {
        "schema": SCHEMA,
        "classes": CLASS_NAMES,
        "options": dataclasses.asdict(config),
        "fingerprint": _content_fingerprint(plan, tables),
        "source": {"kind": found.kind, "fingerprint": found.fingerprint},
        "synthetic": found.synthetic,
        "counts": _counts(images, rejects),
        "shards": [{"name": name, "rows": len(table)} for name, table in zip(shard_names, tables, strict=True)],
    }
    storage.write_json(storage.join(output, "dataset.json"), manifest)
    return open_dataset(output)


def _content_fingerprint(plan: str, tables: "Sequence[pa.Table]") -> str:
    digests = b"".join(table.schema.metadata[b"digest"] for table in tables)
    return hashlib.sha256(plan.encode() + digests).hexdigest()[:16]


def _unlisted(found: Source) -> list[Reject]:
    """Test images that the sample submission does not ask for: nothing may be submitted for them."""
    test = found.images[found.images["split"] == "test"]
    return [
        _reject(path, "not listed in sample_submission.csv, so it is not predicted")
        for path in sorted(test[~test["image_id"].isin(found.sample_submission)]["path"])
    ]


def _labelled(row: dict[str, Any]) -> LabelledImage:
    return LabelledImage(
        image_id=row["image_id"],
        fold=row["fold"],
        original_hw=tuple(row["original_hw"]),
        boxes=as_boxes(row["boxes"]),
        boxes_original=as_boxes(row["boxes_original"]),
        labels=np.asarray(row["labels"], np.int64),
        readers=np.asarray(row["readers"], np.int64),
        rad_ids=tuple(tuple(who) for who in row["rad_ids"]),
    )


def _write_annotations(found: Source, output: str, config: PrepareConfig, images: Sequence[LabelledImage]) -> None:
    def document(part: Sequence[LabelledImage], *, has_truth: bool = True) -> dict[str, Any]:
        return to_coco(part, image_size=config.image_size, synthetic=found.synthetic, has_truth=has_truth)

    test = [image for image in images if image.fold == TEST_FOLD]
    train = document([image for image in images if image.fold != TEST_FOLD])
    documents = {"instances_all": train, "image_info_test": document(test, has_truth=False)}
    documents |= {f"instances_fold{k}": select_folds(train, {k}) for k in range(config.num_folds)}
    if found.truth is not None:
        documents["instances_test"] = document([_with_truth(image, found.truth, config) for image in test])
    for name, content in documents.items():
        storage.write_json(storage.join(output, "annotations", f"{name}.json"), content)


def _with_truth(image: LabelledImage, truth: "pd.DataFrame", config: PrepareConfig) -> LabelledImage:
    """A test image with the labels that its shard must not hold."""
    rows = truth[truth["image_id"] == image.image_id]
    boxes = clip(rows[["x_min", "y_min", "x_max", "y_max"]].to_numpy(float), image.original_hw) if len(rows) else EMPTY
    return dataclasses.replace(
        image,
        boxes=to_prepared(boxes, image.original_hw, config.image_size, config.resize),
        boxes_original=boxes,
        labels=rows["label"].to_numpy(np.int64),
        readers=np.zeros(len(rows), np.int64),  # a consensus, not a count
        rad_ids=tuple(() for _ in range(len(rows))),
    )


def _counts(images: Sequence[LabelledImage], rejects: Sequence[Reject]) -> dict[str, Any]:
    train = [image for image in images if image.fold != TEST_FOLD]
    per_class = Counter(int(label) for image in train for label in image.labels)
    return {
        "train_images": len(train),
        "normal_images": sum(len(image.labels) == 0 for image in train),
        "test_images": len(images) - len(train),
        "boxes": sum(per_class.values()),
        "boxes_per_class": {name: per_class[label] for label, name in enumerate(CLASS_NAMES)},
        "rejects": len(rejects),
    }
