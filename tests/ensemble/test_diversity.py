"""How unlike members are."""

import json

import numpy as np
import pytest

from vbd.ensemble.choose.diversity import diversity
from vbd.errors import InputError
from vbd.records import Detections, Truth

AT = [np.array([100.0 * k, 0, 100 * k + 50, 50]) for k in range(8)]
TRUTHS = [
    Truth("a", np.array(AT[:3], np.float32), np.array([0, 0, 1]), np.ones(3, np.int64)),
    Truth("b"),
    Truth("c", np.array(AT[3:6], np.float32), np.array([2, 2, 2]), np.ones(3, np.int64)),
]


def found(image_id, *boxes):
    """Boxes as (place, label, score)."""
    rows = sorted(boxes, key=lambda box: -box[2])
    return Detections(
        image_id,
        np.array([AT[place] for place, _, _ in rows], np.float32).reshape(-1, 4),
        np.array([score for _, _, score in rows], np.float32),
        np.array([label for _, label, _ in rows], np.int64),
    )


FIRST = [found("a", (0, 0, 0.9), (1, 0, 0.8), (2, 1, 0.4)), found("c", (3, 2, 0.7), (4, 2, 0.6))]
SECOND = [found("a", (0, 0, 0.3), (1, 0, 0.4)), found("c", (3, 2, 0.5), (5, 2, 0.9), (6, 2, 0.1))]


def test_shares_by_hand():
    (pair,) = diversity({"first": FIRST, "second": SECOND}, TRUTHS).pairs
    assert (pair.first, pair.second) == ("first", "second")
    assert (pair.both, pair.first_only, pair.second_only, pair.neither) == pytest.approx((3 / 6, 2 / 6, 1 / 6, 0))
    # Of the three that both found, the first ranks 0.9 0.8 0.7 what the second ranks 0.3 0.4 0.5.
    assert pair.score_correlation == pytest.approx(-1)


def test_a_member_agrees_with_itself():
    result = diversity({"first": FIRST, "again": FIRST}, TRUTHS)
    assert result.pairs[0].score_correlation == pytest.approx(1)
    assert result.pairs[0].first_only == result.pairs[0].second_only == 0
    assert result.found == pytest.approx({"first": 5 / 6, "again": 5 / 6})


def test_boxes_below_too_many_false_ones_do_not_count():
    noisy = [found("a", (6, 0, 0.9), (7, 1, 0.8), (5, 0, 0.7), (0, 0, 0.95), (1, 0, 0.1))]
    share = {n: diversity({"m": noisy}, TRUTHS, false_per_image=n).found["m"] for n in (0, 2 / 3, 1)}
    assert share == pytest.approx({0: 1 / 6, 2 / 3: 1 / 6, 1: 2 / 6})


def test_the_scale_of_scores_does_not_matter():
    def shrunk(each):
        return Detections(each.image_id, each.boxes, each.scores**3 / 10, each.labels)

    quiet = [shrunk(each) for each in SECOND]
    first, second = (
        diversity({"first": FIRST, "second": other}, TRUTHS, false_per_image=0) for other in (SECOND, quiet)
    )
    assert first == second


def test_the_finding_is_the_one_that_is_overlapped_most():
    near = np.array([[0, 0, 50, 50], [10, 0, 60, 50]], np.float32)
    truth = Truth("a", near, np.zeros(2, np.int64), np.ones(2, np.int64))
    left, right = (Detections("a", box[None], np.ones(1, np.float32), np.zeros(1, np.int64)) for box in near)
    (pair,) = diversity({"left": [left], "right": [right]}, [truth]).pairs
    assert (pair.both, pair.first_only, pair.second_only) == (0, 0.5, 0.5)


def test_nothing_to_find_and_nothing_found():
    empty = diversity({"first": [], "second": []}, [Truth("a")])
    assert np.isnan(empty.pairs[0].both)
    assert json.loads(json.dumps(empty.to_json()))["pairs"][0]["both"] is None
    assert diversity({"first": [], "second": FIRST}, TRUTHS).pairs[0].second_only == pytest.approx(5 / 6)
    assert diversity({"first": FIRST}, TRUTHS).pairs == ()


def test_an_image_without_ground_truth_is_told():
    with pytest.raises(InputError, match="'x'"):
        diversity({"m": [found("x")]}, TRUTHS)
