"""A prepared dataset written by hand, so that every number of a report can be counted on the fingers."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from tests.data.prepared_folders import write_prepared
from vbd import storage
from vbd.boxes import as_boxes, to_prepared
from vbd.data.coco import LabelledImage
from vbd.drawing import png

SIZE = 64
HW = (128, 256)  # original pixels: the prepared image is squeezed by 2 and by 4
CARDIOMEGALY, NODULE, ATELECTASIS = 3, 8, 1
BIG, SMALL = (40, 20, 200, 100), (100, 50, 112, 58)

# image: fold, boxes with their label and readers
IMAGES: dict[str, tuple[int, list[tuple[tuple[float, ...], int, tuple[str, ...]]]]] = {
    "a": (0, [(BIG, CARDIOMEGALY, ("R1", "R2", "R3")), (SMALL, NODULE, ("R1",))]),
    "b": (1, [(BIG, CARDIOMEGALY, ("R1", "R2"))]),
    "c": (0, []),
    "d": (1, []),
    "t": (-1, [(BIG, CARDIOMEGALY, ()), (SMALL, ATELECTASIS, ())]),
    "u": (-1, []),
}


def labelled(image_id: str) -> LabelledImage:
    fold, entries = IMAGES[image_id]
    boxes = as_boxes([box for box, _, _ in entries])
    return LabelledImage(
        image_id=image_id,
        fold=fold,
        original_hw=HW,
        boxes=to_prepared(boxes, HW, SIZE, "stretch"),
        boxes_original=boxes,
        labels=np.array([label for _, label, _ in entries], np.int64),
        readers=np.array([len(who) for _, _, who in entries], np.int64),
        rad_ids=[who for _, _, who in entries],
    )


def write_dataset(folder: str, *, synthetic: bool = True) -> str:
    """Four training images in two folds and two test images whose truth is known."""
    _write_readers(folder)
    rng = np.random.default_rng(0)
    for name in IMAGES:
        storage.write_bytes(f"{folder}/images/{name}.png", png(rng.integers(90, 110, (SIZE, SIZE)).astype(np.uint8)))
    rejects = "train.csv,7,x_min 9 >= x_max 4\ntrain.csv,8,x_min 3 >= x_max 1\ne.png,0,<script>alert(1)</script>\n"
    storage.write_bytes(f"{folder}/rejects.csv", f"file,row,reason\n{rejects}".encode())
    return write_prepared(
        folder,
        [labelled(name) for name in "abcd"],
        [labelled(name) for name in "tu"],
        size=SIZE,
        counts={"test_images": 2, "rejects": 3},
        shards=[{"name": "shard-00000.parquet", "rows": 6}],
        synthetic=synthetic,
    )


def _write_readers(folder: str) -> None:
    drawn = [
        {
            "image_id": name,
            "rad_id": who,
            "label": label,
            **dict(zip(("x_min", "y_min", "x_max", "y_max"), box, strict=True)),
        }
        for name, (fold, entries) in IMAGES.items()
        for box, label, readers in entries
        for who in readers
        if fold >= 0
    ]
    read = [{"image_id": name, "rad_id": who} for name in "abcd" for who in ("R1", "R2", "R3")]
    for name, rows in (("readings", drawn), ("readers", read)):
        table = pa.Table.from_pandas(pd.DataFrame(rows), preserve_index=False)
        storage.write_table(f"{folder}/annotations/{name}.parquet", table)


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    return write_dataset(str(tmp_path / "data"))
