"""A prepared dataset in two folds, written by hand: all of it but the images."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from vbd import storage
from vbd.config import PrepareConfig
from vbd.data.coco import LabelledImage, select_folds, to_coco
from vbd.data.prepared import SCHEMA
from vbd.labels import CLASS_NAMES


def write_prepared(
    folder: str,
    train: Sequence[LabelledImage],
    test: Sequence[LabelledImage],
    *,
    size: int,
    counts: Mapping[str, int],
    shards: Sequence[Mapping[str, Any]] = (),
    synthetic: bool = True,
    has_test_truth: bool = True,
) -> str:
    """Writes labels, sample submission and manifest; `size` is the side of the prepared images, pixels."""
    document = to_coco(train, image_size=size, synthetic=synthetic)
    files = {
        "instances_all": document,
        "image_info_test": to_coco(test, image_size=size, synthetic=synthetic, has_truth=False),
    }
    files |= {f"instances_fold{k}": select_folds(document, {k}) for k in (0, 1)}
    if has_test_truth:
        files["instances_test"] = to_coco(test, image_size=size, synthetic=synthetic)
    for name, content in files.items():
        storage.write_json(f"{folder}/annotations/{name}.json", content)
    columns = {
        "image_id": [image.image_id for image in (*train, *test)],
        "fold": [image.fold for image in (*train, *test)],
        "original_hw": [list(image.original_hw) for image in (*train, *test)],
    }
    storage.write_table(f"{folder}/annotations/labels.parquet", pa.table(columns))
    rows = [{"image_id": image.image_id, "PredictionString": "14 1 0 0 1 1"} for image in test]
    storage.write_csv(f"{folder}/sample_submission.csv", rows, ["image_id", "PredictionString"])
    manifest = {
        "schema": SCHEMA,
        "classes": CLASS_NAMES,
        "options": dataclasses.asdict(PrepareConfig(image_size=size, num_folds=2)),
        "fingerprint": "f00d",
        "synthetic": synthetic,
        "counts": dict(counts),
        "shards": list(shards),
    }
    storage.write_json(f"{folder}/dataset.json", manifest)
    return folder
