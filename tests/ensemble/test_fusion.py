"""Fusing the detections of several models, against the authors' own code."""

import ensemble_boxes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vbd.ensemble.fusion import FIELD_THRESHOLDS, fuse, fuse_all
from vbd.errors import InputError
from vbd.fusing import CONFIDENCES
from vbd.records import Detections

SIDE = 1024.0
SEEDS = st.integers(0, 100_000)


def found(image_id, boxes=(), scores=(), labels=None, no_finding=None):
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    labels = np.zeros(len(boxes), np.int64) if labels is None else np.asarray(labels, np.int64)
    return Detections(image_id, boxes, np.asarray(scores, np.float32), labels, no_finding)


def random_runs(seed):
    """Up to five models' boxes of one image, some models without any, and their weights. Scores are distinct."""
    rng = np.random.default_rng(seed)
    runs = []
    for _ in range(rng.integers(1, 6)):
        n = int(rng.choice([0, 1, 8, 20]))
        centre, half = rng.uniform(0.3, 0.7, (n, 2)), rng.uniform(0.05, 0.3, (n, 2))
        boxes = np.clip(np.hstack([centre - half, centre + half]), 0, 1) * SIDE
        runs.append(found("a", boxes, rng.uniform(0.01, 1, n), rng.integers(0, 3, n)))
    return runs, rng.uniform(0.2, 2, len(runs)).tolist(), float(rng.uniform(0.2, 0.7))


def reference_lists(runs):
    boxes = [(run.boxes.astype(np.float64) / SIDE).tolist() for run in runs]
    return boxes, [run.scores.astype(np.float64).tolist() for run in runs], [run.labels.tolist() for run in runs]


def assert_same(fused, boxes, scores, labels):
    """Same boxes in 0..1 and scores to 1e-6, in an order that does not hang on ties between fused scores."""
    assert len(fused.boxes) == len(boxes)
    ours = np.column_stack([fused.labels, fused.scores, fused.boxes / SIDE])
    theirs = np.column_stack([labels, scores, boxes])
    rounded = [table[np.lexsort(np.round(table, 4).T[::-1])] for table in (ours, theirs)]
    np.testing.assert_allclose(*rounded, rtol=0, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.sampled_from([c for c in CONFIDENCES if c != "sum"]))
def test_equals_the_authors_weighted_box_fusion(seed, confidence):
    runs, weights, threshold = random_runs(seed)
    fused = fuse(runs, weights, iou_threshold=threshold, skip_threshold=0.05, confidence=confidence)
    expected = ensemble_boxes.weighted_boxes_fusion(
        *reference_lists(runs), weights=weights, iou_thr=threshold, skip_box_thr=0.05, conf_type=confidence
    )
    assert_same(fused, *expected)


@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_summed_confidence_is_theirs_with_overflow_brought_below_one(seed):
    runs, weights, threshold = random_runs(seed)
    fused = fuse(runs, weights, iou_threshold=threshold, confidence="sum")
    boxes, scores, labels = ensemble_boxes.weighted_boxes_fusion(
        *reference_lists(runs), weights=weights, iou_thr=threshold, allows_overflow=True
    )
    assert_same(fused, boxes, 1 - np.exp(-scores), labels)


@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_equals_their_non_maximum_weighted(seed):
    runs, weights, threshold = random_runs(seed)
    fused = fuse(runs, weights, iou_threshold=threshold, skip_threshold=0.05, method="nmw")
    expected = ensemble_boxes.non_maximum_weighted(
        *reference_lists(runs), weights=weights, iou_thr=threshold, skip_box_thr=0.05
    )
    assert_same(fused, *expected)


@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_equals_their_nms(seed):
    runs, _, threshold = random_runs(seed)
    fused = fuse(runs, [1.0] * len(runs), iou_threshold=threshold, method="nms")
    if not len(fused.boxes):  # their code does not take an image without boxes
        return
    lists = [
        [np.array(rows).reshape(-1, *shape) for rows in kind]
        for kind, shape in zip(reference_lists(runs), ((4,), (), ()), strict=True)
    ]
    assert_same(fused, *ensemble_boxes.nms(*lists, iou_thr=threshold))


@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_soft_nms_keeps_what_theirs_keeps(seed):
    runs, _, threshold = random_runs(seed)
    fused = fuse(runs, [1.0] * len(runs), iou_threshold=threshold, method="soft_nms")
    if not len(fused.boxes):
        return
    lists = [
        [np.array(rows).reshape(-1, *shape) for rows in kind]
        for kind, shape in zip(reference_lists(runs), ((4,), (), ()), strict=True)
    ]
    boxes, before, _ = ensemble_boxes.soft_nms(*lists, method=1, iou_thr=threshold)
    # Theirs gives the scores from before the decay back: compare the boxes alone.
    assert sorted(np.round(fused.boxes / SIDE, 5).tolist()) == sorted(np.round(boxes.astype(np.float32), 5).tolist())
    assert fused.scores.sum() <= before.sum() + 1e-5


def test_no_member_found_anything():
    fused = fuse([found("a"), found("a")], [1, 1])
    assert fused.boxes.shape == (0, 4)
    assert fused.no_finding is None


def test_images_are_joined_by_id_and_a_missing_one_counts_as_no_boxes():
    box = [[0, 0, 10, 10]]
    first = [found("a", box, [0.8]), found("b", box, [0.6])]
    second = [found("c"), found("b", box, [0.4])]
    fused = {image.image_id: image for image in fuse_all([first, second], [1, 1])}
    assert list(fused) == ["a", "b", "c"]
    assert fused["a"].scores.tolist() == pytest.approx([0.4])
    assert fused["b"].scores.tolist() == pytest.approx([0.5])
    assert len(fused["c"].boxes) == 0


def test_many_images_at_once_are_fused_as_one_by_one():
    runs = [random_runs(seed)[0] for seed in range(12)]
    members = [
        [found(f"i{i}", run[m].boxes, run[m].scores, run[m].labels) for i, run in enumerate(runs) if m < len(run)]
        for m in range(5)
    ]
    weights = [1, 2, 1, 0.5, 1]
    together = fuse_all(members, weights, iou_threshold=FIELD_THRESHOLDS)
    for image in together:
        own = [next((f for f in m if f.image_id == image.image_id), found(image.image_id)) for m in members]
        alone = fuse(own, weights, iou_threshold=FIELD_THRESHOLDS)
        assert np.array_equal(alone.boxes, image.boxes)
        assert np.array_equal(alone.scores, image.scores)


def test_scores_descend_and_stay_in_range():
    for confidence in CONFIDENCES:
        scores = fuse(random_runs(3)[0], random_runs(3)[1], confidence=confidence).scores
        assert (np.diff(scores) <= 0).all()
        assert scores.min() > 0
        assert scores.max() <= 1


def test_probability_of_normal_is_the_weighted_mean_of_those_who_know():
    runs = [found("a", no_finding=0.9), found("a", no_finding=0.3), found("a")]
    assert fuse(runs, [3, 1, 5]).no_finding == pytest.approx(0.75)


def test_arguments_are_not_changed():
    runs, weights, _ = random_runs(1)
    before = [run.boxes.copy() for run in runs]
    fuse(runs, weights)
    assert all(np.array_equal(run.boxes, copy) for run, copy in zip(runs, before, strict=True))


def test_misuse_is_told():
    with pytest.raises(ValueError, match="one image"):
        fuse([found("a"), found("b")], [1, 1])
    with pytest.raises(ValueError, match="1 weights for 2 members"):
        fuse([found("a"), found("a")], [1])
    with pytest.raises(ValueError, match="label 1"):
        fuse([found("a")], [1], iou_threshold={0: 0.5})
    with pytest.raises(InputError, match="twice"):
        fuse_all([[found("a"), found("a")]], [1])
