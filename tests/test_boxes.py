import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vbd import boxes

EMPTY = np.zeros((0, 4), np.float32)


def test_no_boxes_stay_no_boxes() -> None:
    assert boxes.areas(EMPTY).shape == (0,)
    assert boxes.iou_matrix(EMPTY, np.ones((3, 4))).shape == (0, 3)
    assert boxes.clip(EMPTY, (5, 5)).shape == (0, 4)
    assert boxes.hflip(EMPTY, 5).shape == (0, 4)
    assert boxes.to_original(EMPTY, (10, 20), 8, "letterbox").shape == (0, 4)
    assert boxes.as_boxes([]).shape == (0, 4)


def test_iou_of_known_pairs() -> None:
    one = np.array([[0, 0, 2, 2]], np.float32)
    others = np.array([[0, 0, 2, 2], [1, 0, 3, 2], [2, 2, 3, 3], [1, 1, 1, 1]], np.float32)
    assert boxes.iou_matrix(one, others)[0] == pytest.approx([1, 1 / 3, 0, 0])


def test_has_area_refuses_what_is_flat_or_not_finite() -> None:
    some = np.array([[0, 0, 1, 2], [0, 0, 0, 2], [0, 0, np.nan, 2], [0, 0, np.inf, 2]], np.float32)
    assert boxes.has_area(some).tolist() == [True, False, False, False]
    assert boxes.has_area(some, min_side=1).tolist() == [False] * 4


def test_flip_twice_is_the_box_and_the_argument_stays() -> None:
    box = np.array([[1, 2, 4, 8]], np.float32)
    flipped = boxes.hflip(box, 10)
    assert flipped.tolist() == [[6, 2, 9, 8]]
    assert boxes.hflip(flipped, 10).tolist() == box.tolist() == [[1, 2, 4, 8]]


def test_letterbox_keeps_the_aspect_ratio_and_centres() -> None:
    whole = np.array([[0, 0, 100, 50]], np.float32)
    assert boxes.to_prepared(whole, (50, 100), 10, "letterbox").tolist() == [[0, 2, 10, 7]]
    assert boxes.to_prepared(whole, (50, 100), 10, "stretch").tolist() == [[0, 0, 10, 10]]


def test_coco_form_there_and_back() -> None:
    box = np.array([[1, 2, 4, 8]], np.float32)
    assert boxes.xyxy_to_xywh(box).tolist() == [[1, 2, 3, 6]]
    assert boxes.xywh_to_xyxy(boxes.xyxy_to_xywh(box)).tolist() == box.tolist()


@given(
    st.tuples(st.integers(10, 3000), st.integers(10, 3000)),
    st.integers(16, 1024),
    st.sampled_from(["stretch", "letterbox"]),
    st.lists(st.floats(0, 1), min_size=4, max_size=4),
)
def test_to_original_undoes_to_prepared(
    hw: tuple[int, int], size: int, mode: boxes.ResizeMode, at: list[float]
) -> None:
    height, width = hw
    x, y = sorted(at[:2]), sorted(at[2:])
    box = np.array([[x[0] * width, y[0] * height, x[1] * width, y[1] * height]], np.float32)
    prepared = boxes.to_prepared(box, hw, size, mode)
    assert (prepared >= -1e-3).all()
    assert (prepared <= size + 1e-3).all()
    tolerance = 1e-5 * max(hw) * (1 + max(hw) / size)
    assert boxes.to_original(prepared, hw, size, mode) == pytest.approx(box, abs=tolerance)
