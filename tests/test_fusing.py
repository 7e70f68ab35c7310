"""The kernel of weighted box fusion."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vbd.fusion.wbf import CONFIDENCES, canonical_order, group_starts, weighted_box_fusion

FOUND_TWICE = [[0, 0, 10, 10], [0, 0, 10, 12], [50, 50, 60, 60]]


def test_nothing_to_fuse():
    fused = weighted_box_fusion(np.zeros((0, 4)), [], [], [], weights=[1, 1])
    assert fused.boxes.shape == (0, 4)
    assert len(fused.scores) == len(fused.labels) == len(fused.members) == 0


def test_overlapping_boxes_of_two_models_become_their_weighted_mean():
    fused = weighted_box_fusion(FOUND_TWICE, [0.6, 0.2, 0.9], [3, 3, 3], [0, 1, 0], weights=[1, 1])
    assert fused.boxes.tolist() == [[50, 50, 60, 60], [0, 0, 10, 10.5]]
    # The lone box was seen by one of two models: half of its score.
    assert fused.scores.tolist() == pytest.approx([0.45, 0.4])
    assert fused.members.tolist() == [1, 1, 0]


def test_labels_and_images_are_kept_apart():
    other_label = weighted_box_fusion(FOUND_TWICE[:2], [0.6, 0.2], [3, 4], [0, 1], weights=[1, 1])
    other_image = weighted_box_fusion(FOUND_TWICE[:2], [0.6, 0.2], [3, 3], [0, 1], weights=[1, 1], images=[1, 0])
    assert sorted(other_label.labels) == [3, 4]
    assert other_image.images.tolist() == [0, 1]
    assert other_image.members.tolist() == [1, 0]


def test_each_label_may_have_its_threshold():
    boxes = [[0, 0, 10, 10], [0, 0, 10, 5]] * 2
    thresholds = np.array([0.4, 0.6])
    fused = weighted_box_fusion(
        boxes, [0.9, 0.8, 0.7, 0.6], [0, 0, 1, 1], [0, 1, 0, 1], weights=[1, 1], iou_threshold=thresholds
    )
    assert sorted(fused.labels) == [0, 1, 1]


@pytest.mark.parametrize(
    "dropped",
    [[5, 5, 5, 9], [9, 9, 5, 5], [np.nan, 0, 5, 5], [0, 0, np.inf, 5]],
    ids=["no width", "inverted", "not a number", "infinite"],
)
def test_a_box_without_area_belongs_nowhere(dropped):
    fused = weighted_box_fusion([dropped, [0, 0, 10, 10]], [0.9, 0.8], [0, 0], [0, 0], weights=[1])
    assert fused.members.tolist() == [-1, 0]


def test_low_scores_and_weightless_models_are_dropped():
    fused = weighted_box_fusion(
        FOUND_TWICE, [0.6, 0.01, 0.9], [0, 0, 0], [0, 0, 1], weights=[1, 0], skip_threshold=0.02
    )
    assert fused.members.tolist() == [0, -1, -1]
    assert fused.scores.tolist() == [0.6]


def test_boxes_without_any_confidence_keep_the_first():
    fused = weighted_box_fusion(FOUND_TWICE, [0, 0, 0], [0, 0, 0], [0, 1, 0], weights=[1, 1])
    assert np.isfinite(fused.boxes).all()
    assert [0, 0, 10, 10] in fused.boxes.tolist()


@pytest.mark.parametrize("weights", [[0, 0], [1, -1], [[1, 1]]])
def test_senseless_weights_are_refused(weights):
    with pytest.raises(ValueError, match="weights"):
        weighted_box_fusion(FOUND_TWICE, [0.6, 0.2, 0.9], [0, 0, 0], [0, 1, 0], weights=weights)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(CONFIDENCES))
def test_order_of_rows_does_not_matter_even_on_ties(seed, confidence):
    rng = np.random.default_rng(seed)
    n = 30
    corner = rng.integers(0, 6, (n, 2)) * 10
    boxes = np.hstack([corner, corner + rng.integers(1, 5, (n, 2)) * 10]).astype(float)
    columns = boxes, rng.choice([0.2, 0.5, 0.8], n), rng.integers(0, 2, n), rng.integers(0, 3, n)
    image, rows = rng.integers(0, 2, n), rng.permutation(n)
    keywords = {"weights": [1, 1, 2], "confidence": confidence}
    fused = weighted_box_fusion(*columns, images=image, **keywords)
    shuffled = weighted_box_fusion(*(column[rows] for column in columns), images=image[rows], **keywords)
    assert np.array_equal(fused.boxes, shuffled.boxes)
    assert np.array_equal(fused.scores, shuffled.scores)
    # Rows that are equal in everything may swap places; what a row went into is the same box.
    assert np.array_equal(fused.labels[fused.members[rows]], columns[2][rows])
    assert sorted(fused.members[rows].tolist()) == sorted(shuffled.members.tolist())


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0, 1, 16, 17, 200]))
def test_the_canonical_order_is_that_of_a_sort_by_all_its_keys(seed, n):
    rng = np.random.default_rng(seed)
    boxes = rng.integers(0, 3, (n, 4)).astype(float)
    scores, labels, models = rng.choice([0.2, 0.5], n), rng.integers(0, 2, n), rng.integers(0, 2, n)
    images, keep = rng.integers(0, 2, n) * 7, rng.uniform(size=n) < 0.9
    order, starts = canonical_order(boxes, scores, labels, models, images, keep=keep)
    everything = np.lexsort((np.arange(n), *boxes.T[::-1], models, -scores, labels, images))
    kept = keep & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    assert order.tolist() == everything[kept[everything]].tolist()
    assert starts.tolist() == group_starts(images[order], labels[order]).tolist()
