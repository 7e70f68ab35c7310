"""The competition's own annotations, which the package torchxrayvision carries: every count that docs and papers give."""

import gzip
import importlib.util
import os
from collections import Counter
from pathlib import Path

import pytest

from tests.data.source_folders import png
from vbd.data.sources.read import describe, read_source
from vbd.labels import NUM_FINDINGS

PER_CLASS = [7162, 279, 960, 5427, 556, 1000, 1247, 2483, 2580, 2203, 2476, 4842, 226, 4655]
BUSY_READERS = {"R8": 9_762, "R9": 13_729, "R10": 10_971}
ROWS = 67_914


def annotations():
    """The file's place; the package itself is not imported, for it would need torch and more."""
    found = importlib.util.find_spec("torchxrayvision")
    places = [Path(place) for place in (found.submodule_search_locations or ())] if found else []
    return next((file for place in places if (file := place / "data" / "vinbigdata-train.csv.gz").exists()), None)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    file = annotations()
    if file is None:
        message = "torchxrayvision (pip install --no-deps torchxrayvision==1.5.7) is not installed"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    folder = tmp_path_factory.mktemp("competition")
    (folder / "train").mkdir()
    (folder / "train.csv.gz").write_bytes(file.read_bytes())
    picture = folder / "picture"
    picture.write_bytes(png(8, 8))
    lines = gzip.decompress(file.read_bytes()).decode().splitlines()[1:]
    assert len(lines) == ROWS
    sizes = {}
    for image_id, *_, x_max, y_max in (line.split(",") for line in lines):
        width, height = sizes.get(image_id, (500, 500))
        sizes[image_id] = max(width, int(float(x_max or 0)) + 9), max(height, int(float(y_max or 0)) + 9)
    for image_id in sizes:
        (folder / "train" / f"{image_id}.png").hardlink_to(picture)
    meta = ["image_id,dim0,dim1", *(f"{image_id},{height},{width}" for image_id, (width, height) in sizes.items())]
    (folder / "train_meta.csv").write_text("\n".join(meta))
    return read_source(str(folder))


def test_nothing_is_refused(source):
    assert source.rejects == []
    assert describe(source) == (
        "competition layout, 15,000 train and 0 test images (.png), 36,096 boxes on 4,394 images by 17 readers"
    )


def test_images_and_boxes(source):
    assert len(source.images) == 15_000
    assert source.readings["image_id"].nunique() == 4_394
    assert len(source.readings) == 36_096


def test_boxes_of_each_class(source):
    counts = source.readings["label"].value_counts()
    assert [counts[label] for label in range(NUM_FINDINGS)] == PER_CLASS


def test_every_image_was_read_by_three_of_17_readers(source):
    assert set(source.readers["rad_id"]) == {f"R{number}" for number in range(1, 18)}
    assert set(source.readers.groupby("image_id")["rad_id"].nunique()) == {3}
    assert len(source.readers) == 45_000


def test_three_readers_drew_nearly_all_boxes(source):
    counts = Counter(source.readings["rad_id"])
    assert {reader: counts[reader] for reader in BUSY_READERS} == BUSY_READERS
    assert round(sum(BUSY_READERS.values()) / len(source.readings), 2) == 0.95


def test_abnormal_images_were_mostly_read_by_those_three(source):
    trio = source.readers[source.readers["rad_id"].isin(BUSY_READERS)]["image_id"].value_counts()
    seen_by_all_three = set(trio[trio == 3].index)
    abnormal = set(source.readings["image_id"])
    assert len(abnormal & seen_by_all_three) == 4_146
    assert round(len(abnormal & seen_by_all_three) / len(seen_by_all_three), 2) == 0.75


def test_no_image_is_normal_to_some_of_its_readers_only(source):
    drew = source.readings[["image_id", "rad_id"]].drop_duplicates().groupby("image_id").size()
    read = source.readers.groupby("image_id").size()
    assert (drew == read[drew.index]).all()
