import numpy as np
import pandas as pd
import pytest

from vbd.data.readers import FUSED_COLUMNS, FusionMethod, fuse_readers
from vbd.records import READING_COLUMNS


def readings(*rows: tuple) -> pd.DataFrame:
    return pd.DataFrame(list(rows), columns=list(READING_COLUMNS))


def corners(table: pd.DataFrame) -> list[list[float]]:
    return table[["x_min", "y_min", "x_max", "y_max"]].to_numpy().tolist()


THREE = readings(
    ("a", "R9", 3, 10.0, 10.0, 110.0, 110.0),
    ("a", "R10", 3, 20.0, 10.0, 120.0, 110.0),
    ("a", "R8", 3, 15.0, 10.0, 115.0, 110.0),
    ("a", "R8", 0, 10.0, 10.0, 110.0, 110.0),
    ("b", "R9", 3, 10.0, 10.0, 110.0, 110.0),
    ("b", "R8", 3, 300.0, 10.0, 410.0, 110.0),
)


def test_readers_who_agree_become_their_mean_box() -> None:
    fused = fuse_readers(THREE)
    assert list(fused.columns) == list(FUSED_COLUMNS)
    assert fused["image_id"].tolist() == ["a", "a", "b", "b"]
    assert fused["label"].tolist() == [0, 3, 3, 3]
    assert corners(fused) == [[10, 10, 110, 110], [15, 10, 115, 110], [10, 10, 110, 110], [300, 10, 410, 110]]
    assert fused["readers"].tolist() == [1, 3, 1, 1]
    assert fused["rad_ids"].tolist() == [("R8",), ("R10", "R8", "R9"), ("R9",), ("R8",)]
    assert fused["x_min"].dtype == np.float32
    assert fused["label"].dtype == fused["readers"].dtype == np.int64


def test_a_reader_who_drew_twice_counts_once() -> None:
    fused = fuse_readers(
        readings(("a", "R8", 3, 0, 0, 100, 100), ("a", "R8", 3, 5, 0, 105, 100), ("a", "R9", 3, 5, 0, 105, 100))
    )
    assert fused["readers"].tolist() == [2]
    assert fused["rad_ids"].tolist() == [("R8", "R9")]


def test_threshold_decides_what_is_one_lesion() -> None:
    pair = readings(("a", "R8", 3, 0, 0, 100, 100), ("a", "R9", 3, 50, 0, 150, 100))  # IoU 1/3
    assert len(fuse_readers(pair, iou_threshold=0.4)) == 2
    assert len(fuse_readers(pair, iou_threshold=0.3)) == 1


def test_union_keeps_every_box_as_drawn() -> None:
    fused = fuse_readers(THREE, method="union")
    assert len(fused) == len(THREE)
    assert set(fused["readers"]) == {1}
    assert corners(fused)[1:4] == [[10, 10, 110, 110], [15, 10, 115, 110], [20, 10, 120, 110]]
    assert fused["rad_ids"].tolist()[1:4] == [("R9",), ("R8",), ("R10",)]


@pytest.mark.parametrize("method", ["wbf", "union"])
def test_no_readings_give_no_rows(method: FusionMethod) -> None:
    fused = fuse_readers(THREE.iloc[:0], method=method)
    assert fused.empty
    assert list(fused.columns) == list(FUSED_COLUMNS)


@pytest.mark.parametrize("method", ["wbf", "union"])
def test_order_of_the_rows_does_not_matter(method: FusionMethod) -> None:
    rng = np.random.default_rng(3)
    starts = rng.integers(0, 60, size=(200, 2)).astype(float)
    ends = starts + rng.integers(20, 60, size=(200, 2))
    table = pd.DataFrame(np.concatenate([starts, ends], axis=1), columns=list(READING_COLUMNS[3:]))
    table["image_id"] = rng.choice(["a", "b", "c"], 200)
    table["rad_id"] = rng.choice(["R8", "R9", "R10"], 200)
    table["label"] = rng.integers(0, 3, 200)
    before = table.copy()
    expected = fuse_readers(table, method=method)
    for seed in range(5):
        shuffled = table.sample(frac=1, random_state=seed)
        pd.testing.assert_frame_equal(fuse_readers(shuffled, method=method), expected)
    pd.testing.assert_frame_equal(table, before)


def test_readings_without_area_are_left_out() -> None:
    fused = fuse_readers(readings(("a", "R8", 3, 5, 5, 5, 9), ("a", "R9", 3, 0, 0, 9, 9)))
    assert fused["rad_ids"].tolist() == [("R9",)]
