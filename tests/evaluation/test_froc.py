"""Operating points."""

import math

import numpy as np
import pytest

from vbd.evaluation.froc import froc
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
