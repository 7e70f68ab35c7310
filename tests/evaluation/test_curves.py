"""Precision against recall."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.evaluation.images import found, random_images, truth
from vbd.evaluation.average_precision import average_precisions
from vbd.evaluation.curves import precision_recall_curves
from vbd.evaluation.matching import CLASSES, match
from vbd.labels import CLASS_NAMES

BOX, AWAY, MISS = [0, 0, 10, 10], [50, 50, 60, 60], [200, 200, 210, 210]


def test_a_point_after_each_detection():
    detections = [found("a", [BOX, MISS, AWAY], [0.9, 0.8, 0.7])]
    curve = precision_recall_curves(match(detections, [truth("a", [BOX, AWAY])]))[CLASS_NAMES[0]]
    assert curve.scores.tolist() == pytest.approx([0.9, 0.8, 0.7])
    assert curve.recall.tolist() == [0.5, 0.5, 1]
    assert curve.precision.tolist() == pytest.approx([1, 1 / 2, 2 / 3])
    assert curve.envelope.tolist() == pytest.approx([1, 2 / 3, 2 / 3])
    assert curve.num_truths == 2


def test_nothing_found_and_nothing_to_find():
    curves = precision_recall_curves(match([found("a", [BOX], [0.9], [1])], [truth("a", [BOX], [0])]))
    assert list(curves) == list(CLASSES)
    assert curves[CLASS_NAMES[0]].recall.shape == (0,)
    assert (curves[CLASS_NAMES[1]].num_truths, len(curves[CLASS_NAMES[1]].scores)) == (0, 1)
    assert np.isnan(curves[CLASS_NAMES[1]].envelope).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_the_area_under_the_curve_is_the_average_precision(seed):
    matches = match(*random_images(seed))
    areas = [
        np.sum(np.diff(curve.recall, prepend=0) * curve.envelope) if curve.num_truths else np.nan
        for curve in precision_recall_curves(matches).values()
    ]
    assert areas == pytest.approx(average_precisions(matches).tolist(), nan_ok=True)
