from typing import get_args

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.real_data import competition_rows
from vbd.boxes import iou_matrix
from vbd.config import ReaderFusion
from vbd.data.labelling.readers import FUSED_COLUMNS, fuse_readers
from vbd.errors import InputError
from vbd.records import READING_COLUMNS

METHODS: tuple[ReaderFusion, ...] = get_args(ReaderFusion)


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


@pytest.mark.parametrize("method", METHODS)
def test_no_readings_give_no_rows(method: ReaderFusion) -> None:
    fused = fuse_readers(THREE.iloc[:0], method=method)
    assert fused.empty
    assert list(fused.columns) == list(FUSED_COLUMNS)


def test_readings_without_area_are_left_out() -> None:
    fused = fuse_readers(readings(("a", "R8", 3, 5, 5, 5, 9), ("a", "R9", 3, 0, 0, 9, 9)))
    assert fused["rad_ids"].tolist() == [("R9",)]


# Of one lesion: R10's box lies between the other two, which overlap each other less.
CHAIN = readings(("a", "R8", 3, 0, 0, 100, 60), ("a", "R9", 3, 40, 0, 140, 60), ("a", "R10", 3, 20, 0, 120, 60))


def test_nms_keeps_the_box_that_the_others_agree_with_most() -> None:
    fused = fuse_readers(CHAIN, method="nms")
    assert corners(fused) == [[20, 0, 120, 60]]
    assert fused["rad_ids"].tolist() == [("R10", "R8", "R9")]


def test_nms_counts_a_reader_who_drew_twice_once() -> None:
    """R9's first box lies between the other readers'; added up, R9's two would make R8's the best."""
    twice = readings(
        *(("a", name, 3, x, 0, x + 100, 100) for name, x in (("R8", 0), ("R9", 2), ("R9", 5), ("R10", 15)))
    )
    assert corners(fuse_readers(twice, method="nms")) == [[2, 0, 102, 100]]


def test_nmw_weighs_boxes_by_agreement_and_overlap_with_the_best() -> None:
    # IoU of neighbours 80 / 120, of the outer two 60 / 140.
    near, far = 80 / 120, 60 / 140
    scores = np.array([1 + near + far, 1 + near + far, 1 + 2 * near])
    weights = scores * [near, near, 1]
    fused = fuse_readers(CHAIN, method="nmw")
    expected = weights @ CHAIN[list(READING_COLUMNS[3:])].to_numpy(float) / weights.sum()
    np.testing.assert_allclose(corners(fused)[0], expected, rtol=1e-6)
    outer = fuse_readers(CHAIN.iloc[[0, 2]], method="nmw", iou_threshold=0.5)
    # Of two that agree equally the one further left is the best.
    np.testing.assert_allclose(
        corners(outer)[0], [20 * near / (1 + near), 0, 100 + 20 * near / (1 + near), 60], rtol=1e-6
    )


def test_mean_takes_a_chain_for_one_lesion_and_wbf_does_not() -> None:
    chain = readings(*(("a", f"R{n}", 3, n * 40, 0, n * 40 + 100, 60) for n in range(5)))  # IoU of neighbours 3 / 7
    fused = fuse_readers(chain, method="mean")
    assert corners(fused) == [[80, 0, 180, 60]]
    assert fused["readers"].tolist() == [5]
    assert len(fuse_readers(chain, method="wbf")) > 1


@pytest.mark.parametrize("method", [method for method in METHODS if method != "union"])
def test_only_lesions_of_enough_readers_stay(method: ReaderFusion) -> None:
    assert fuse_readers(THREE, method=method, min_readers=2)["rad_ids"].tolist() == [("R10", "R8", "R9")]
    assert fuse_readers(THREE, method=method, min_readers=4).empty


def test_union_keeps_boxes_that_enough_readers_support() -> None:
    twice = pd.concat([THREE, readings(("b", "R9", 3, 12, 10, 110, 110))])  # supported by its own reader only
    fused = fuse_readers(twice, method="union", min_readers=2)
    assert fused["image_id"].tolist() == ["a", "a", "a"]
    assert fused["label"].tolist() == [3, 3, 3]
    assert set(fused["readers"]) == {1}
    assert len(fuse_readers(CHAIN, method="union", min_readers=3, iou_threshold=0.5)) == 1


def test_one_reader_or_a_set_is_heard() -> None:
    assert fuse_readers(THREE, readers=("R8",))["rad_ids"].tolist() == [("R8",)] * 3
    assert fuse_readers(THREE, without_readers=["R8", "R10"])["rad_ids"].tolist() == [("R9",)] * 2
    assert fuse_readers(THREE, readers={"R8", "R9"}, without_readers={"R9"})["rad_ids"].tolist() == [("R8",)] * 3
    pair = fuse_readers(THREE, readers=("R8", "R9"), min_readers=2)
    assert pair["rad_ids"].tolist() == [("R8", "R9")]
    assert corners(pair) == [[12.5, 10, 112.5, 110]]


@pytest.mark.parametrize("option", ["readers", "without_readers"])
def test_unknown_reader_is_told_with_those_there_are(option: str) -> None:
    with pytest.raises(InputError, match="reader 'R80': no such reader; choose among R10, R8, R9"):
        fuse_readers(THREE, **{option: ("R8", "R80")})


def test_a_known_reader_need_not_have_drawn() -> None:
    assert fuse_readers(THREE, readers=("R1",), known_readers=("R1", "R8")).empty
    assert len(fuse_readers(THREE, without_readers=("R1",), known_readers=("R1",))) == 4


def drawn(seed: int) -> pd.DataFrame:
    """Some sixty boxes on a coarse grid, so that many touch, tie or are equal; whole pixels are exact in float32."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 80))
    starts = rng.integers(0, 6, size=(count, 2)) * 10
    ends = starts + rng.integers(1, 6, size=(count, 2)) * 10
    table = pd.DataFrame(np.concatenate([starts, ends], axis=1).astype(float), columns=list(READING_COLUMNS[3:]))
    table["image_id"] = rng.choice(["a", "b"], count)
    table["rad_id"] = rng.choice(["R8", "R9", "R10", "R11"], count)
    table["label"] = rng.integers(0, 2, count)
    return table[list(READING_COLUMNS)]


SEEDS = st.integers(0, 100_000)
METHOD = st.sampled_from(METHODS)
MANY = settings(max_examples=80, deadline=None)


@MANY
@given(SEEDS, METHOD)
def test_order_of_the_rows_does_not_matter(seed: int, method: ReaderFusion) -> None:
    table = drawn(seed)
    before = table.copy()
    expected = fuse_readers(table, method=method)
    for shuffle in range(3):
        pd.testing.assert_frame_equal(fuse_readers(table.sample(frac=1, random_state=shuffle), method=method), expected)
    pd.testing.assert_frame_equal(table, before)


@MANY
@given(SEEDS, METHOD, st.permutations(["R8", "R9", "R10", "R11"]))
def test_names_of_the_readers_do_not_matter(seed: int, method: ReaderFusion, names: list[str]) -> None:
    table = drawn(seed)
    renamed = dict(zip(["R8", "R9", "R10", "R11"], names, strict=True))
    ours = fuse_readers(table, method=method)
    theirs = fuse_readers(table.assign(rad_id=table["rad_id"].map(renamed)), method=method)
    ours["rad_ids"] = [tuple(sorted(renamed[name] for name in who)) for who in ours["rad_ids"]]
    ours = ours.sort_values([*FUSED_COLUMNS[:6], "rad_ids"], ignore_index=True)
    pd.testing.assert_frame_equal(ours, theirs)


@MANY
@given(SEEDS, METHOD, st.integers(2, 4))
def test_agreement_of_more_readers_only_leaves_boxes_out(seed: int, method: ReaderFusion, min_readers: int) -> None:
    table = drawn(seed)
    every = fuse_readers(table, method=method)
    some = fuse_readers(table, method=method, min_readers=min_readers)
    support = [_supporters(table, row) for row in every.itertuples()] if method == "union" else every["readers"]
    expected = every[np.array(support) >= min_readers].reset_index(drop=True)
    pd.testing.assert_frame_equal(some, expected)


def _supporters(table: pd.DataFrame, row) -> int:
    """Readers with a box of the same image and class that overlaps the row's, its own reader among them."""
    same = table[(table["image_id"] == row.image_id) & (table["label"] == row.label)]
    box = np.array([[row.x_min, row.y_min, row.x_max, row.y_max]])
    overlaps = iou_matrix(box, same[list(READING_COLUMNS[3:])].to_numpy())[0] > 0.4
    return len({*same.loc[overlaps, "rad_id"], *row.rad_ids})


@MANY
@given(SEEDS, METHOD)
def test_every_reading_is_in_one_lesion_whose_box_lies_among_its_own(seed: int, method: ReaderFusion) -> None:
    # Every row has a reader of its own, whose name tells where the row went.
    table = drawn(seed)
    table["rad_id"] = [f"reader {row}" for row in range(len(table))]
    fused = fuse_readers(table, method=method)
    rows = [[int(name.removeprefix("reader ")) for name in who] for who in fused["rad_ids"]]
    assert sorted(row for members in rows for row in members) == list(range(len(table)))
    assert fused["readers"].tolist() == [len(members) for members in rows]
    for lesion, members in zip(fused.itertuples(), rows, strict=True):
        own = table.iloc[members]
        assert set(own["image_id"]) == {lesion.image_id}
        assert set(own["label"]) == {lesion.label}
        hull = own[["x_min", "y_min"]].min().tolist(), own[["x_max", "y_max"]].max().tolist()
        assert hull[0][0] <= lesion.x_min < lesion.x_max <= hull[1][0]
        assert hull[0][1] <= lesion.y_min < lesion.y_max <= hull[1][1]


@MANY
@given(SEEDS)
def test_mean_is_the_mean_of_what_overlaps_link(seed: int) -> None:
    """Against links followed one by one."""
    table = drawn(seed).query("image_id == 'a' and label == 0")
    boxes = table[list(READING_COLUMNS[3:])].to_numpy()
    links = np.linalg.matrix_power((iou_matrix(boxes, boxes) > 0.4).astype(float), max(1, len(boxes))) > 0
    means = np.array([boxes[row].mean(axis=0) for row in links]).reshape(-1, 4).astype(np.float32)
    fused = np.array(corners(fuse_readers(table, method="mean")), np.float32).reshape(-1, 4)
    np.testing.assert_allclose(np.unique(fused, axis=0), np.unique(means, axis=0), rtol=1e-6)


def test_shares_of_agreement_in_the_competition() -> None:
    rows = competition_rows()
    boxes = rows.loc[rows["label"] < 14, list(READING_COLUMNS)]
    fused = fuse_readers(boxes)
    assert len(boxes) == 36_096
    assert len(fused) == pytest.approx(22_700, abs=50)
    shares = fused["readers"].value_counts(normalize=True)
    assert [shares[count] for count in (1, 2, 3)] == pytest.approx([0.61, 0.19, 0.20], abs=0.005)
    assert len(fuse_readers(boxes, readers=("R8",))) == 9_762
    # Six of the seventeen readers found nothing in any image.
    assert fuse_readers(boxes, readers=("R1",), known_readers=set(rows["rad_id"])).empty
