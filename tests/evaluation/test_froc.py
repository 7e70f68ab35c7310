"""Operating points."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.evaluation.images import random_images, renamed, tied_images
from vbd.evaluation.froc import RATES, froc, froc_intervals, froc_of
from vbd.evaluation.intervals import weights_of_replicates
from vbd.evaluation.matching import match
from vbd.labels import CLASS_NAMES
from vbd.records import Detections, Truth

HIT, MISS = [0, 0, 10, 10], [50, 50, 60, 60]


def image(image_id, boxes, scores):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    return Detections(image_id, boxes, np.array(scores, np.float32), np.zeros(len(boxes), np.int64))


def ill(image_id):
    return Truth(image_id, np.array([HIT], np.float32), np.zeros(1, np.int64), np.ones(1, np.int64))


def test_no_images():
    curve = froc([], []).pooled
    assert all(math.isnan(value) for value in curve.sensitivities)


def test_no_detections_find_nothing():
    curve = froc([], [ill("a")]).pooled
    assert set(curve.sensitivities) == {0.0}
    assert all(math.isnan(value) for value in curve.score_thresholds)


def test_sensitivity_grows_with_the_false_positives_allowed():
    # By score: found, false, found, false; two images, so one false box is half a false box per image.
    detections = [image("a", [HIT, MISS], [0.9, 0.8]), image("b", [HIT, MISS], [0.7, 0.6])]
    curve = froc(detections, [ill("a"), ill("b")], rates=(0.25, 0.5, 1)).pooled
    assert curve.sensitivities == (0.5, 1.0, 1.0)
    assert curve.score_thresholds == pytest.approx((0.9, 0.7, 0.6))
    assert curve.mean_sensitivity == pytest.approx(2.5 / 3)


def test_boxes_of_equal_score_are_kept_together():
    # A threshold cannot keep the true box of the two: at no false positives nothing is found.
    curve = froc([image("a", [HIT, MISS], [0.5, 0.5])], [ill("a")], rates=(0.5, 1)).pooled
    assert curve.sensitivities == (0, 1)
    assert math.isnan(curve.score_thresholds[0])


def test_normal_images_count_among_the_images():
    detections = [image("a", [MISS, HIT], [0.9, 0.8])]
    alone = froc(detections, [ill("a")], rates=(0.5,)).pooled
    with_normal = froc(detections, [ill("a"), Truth("b")], rates=(0.5,)).pooled
    assert (alone.sensitivities, with_normal.sensitivities) == ((0,), (1,))


def test_each_class_has_its_curve():
    result = froc([image("a", [HIT], [0.9])], [ill("a")])
    assert set(result.per_class) == set(CLASS_NAMES)
    assert result.per_class[CLASS_NAMES[0]].num_truths == 1
    assert math.isnan(result.per_class[CLASS_NAMES[1]].mean_sensitivity)


def test_the_whole_curve_has_a_point_for_each_score():
    detections = [image("a", [HIT, MISS], [0.9, 0.8]), image("b", [HIT, MISS], [0.8, 0.6])]
    curve = froc(detections, [ill("a"), ill("b")]).pooled
    assert curve.curve_scores.tolist() == pytest.approx([0.9, 0.8, 0.6])
    assert curve.curve_sensitivities.tolist() == [0.5, 1, 1]
    assert curve.curve_false_positives_per_image.tolist() == [0, 0.5, 1]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.booleans())
def test_operating_points_lie_on_the_curve_and_keep_what_their_threshold_keeps(seed, tied):
    detections, truths = tied_images(seed) if tied else random_images(seed)
    matches = match(detections, truths)
    for curve in (froc_of(matches).pooled, *froc_of(matches).per_class.values()):
        assert (np.diff(curve.curve_false_positives_per_image) >= 0).all()
        for rate, sensitivity, threshold in zip(RATES, curve.sensitivities, curve.score_thresholds, strict=True):
            if not math.isnan(threshold):
                (place,) = np.flatnonzero(curve.curve_scores == threshold)
                assert curve.curve_false_positives_per_image[place] <= rate
                assert np.array_equal(curve.curve_sensitivities[place], sensitivity, equal_nan=True)


def test_intervals_are_those_of_the_curves_of_the_images_drawn():
    detections, truths = random_images(1, num_images=15)
    matches, rates = match(detections, truths), (0.25, 1)
    values = []
    for times in weights_of_replicates(15, seed=4, replicates=30):
        copies = [(i, k) for i, n in enumerate(times) for k in range(n)]
        drawn = [[renamed(images[i], f"{i}-{k}") for i, k in copies] for images in (detections, truths)]
        values.append(froc(*drawn, rates=rates).pooled.sensitivities)
    intervals = froc_intervals(matches, seed=4, replicates=30, rates=rates)
    low, high = np.nanquantile(values, [0.025, 0.975], axis=0)
    assert [each.estimate for each in intervals] == list(froc_of(matches, rates=rates).pooled.sensitivities)
    assert [each.low for each in intervals] == pytest.approx(low.tolist())
    assert [each.high for each in intervals] == pytest.approx(high.tolist())
    assert intervals[0].low < intervals[0].high


def test_no_images_give_no_intervals():
    (interval,) = froc_intervals(match([], []), seed=0, replicates=5, rates=(1,))
    assert math.isnan(interval.low)
