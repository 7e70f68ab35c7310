import numpy as np
import pytest

from vbd.records import Detections, detections_from_table, detections_to_table


def test_detections_without_boxes_keep_their_row() -> None:
    one = Detections("a", np.ones((2, 4), np.float32), np.array([0.9, 0.1], np.float32), np.array([3, 13]))
    empty = Detections("b", no_finding=0.75)
    back = detections_from_table(detections_to_table([one, empty]))
    assert [item.image_id for item in back] == ["a", "b"]
    assert back[0].boxes.tolist() == one.boxes.tolist()
    assert back[0].scores.tolist() == one.scores.tolist()
    assert back[0].labels.tolist() == [3, 13]
    assert back[0].no_finding is None
    assert back[1].boxes.shape == (0, 4)
    assert back[1].no_finding == 0.75


def test_no_detections_at_all() -> None:
    assert detections_from_table(detections_to_table([])) == []


def test_shapes_that_disagree_are_refused() -> None:
    with pytest.raises(ValueError, match="detections of a"):
        Detections("a", np.ones((2, 4), np.float32), np.ones(1, np.float32), np.zeros(2, np.int64))
