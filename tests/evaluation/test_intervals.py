"""Bootstrap intervals of the metric."""

import math

import numpy as np
import pytest

from tests.evaluation.images import random_images, renamed
from vbd.evaluation.average_precision import evaluate
from vbd.evaluation.intervals import (
    bootstrap,
    bootstrap_of,
    paired_difference,
    paired_difference_of,
    replicate,
    weights_of_replicates,
)
from vbd.evaluation.matching import match
from vbd.labels import CLASS_NAMES, NO_FINDING_NAME
from vbd.records import Detections, Truth

BOX = np.array([[0, 0, 10, 10]], np.float32)
LABEL = np.zeros(1, np.int64)


def images(found_share, num_images=40):
    """One finding per image; the model finds a share of them and is silent on the rest."""
    truths = [Truth(f"i{i}", BOX, LABEL, LABEL) for i in range(num_images)]
    is_found = np.arange(num_images) < found_share * num_images
    scores = np.linspace(0.9, 0.1, num_images, dtype=np.float32)
    detections = [
        Detections(f"i{i}", BOX, scores[i : i + 1], LABEL) if is_found[i] else Detections(f"i{i}")
        for i in range(num_images)
    ]
    return detections, truths


def test_no_images_give_no_interval():
    interval = bootstrap([], [], seed=0, replicates=10).map_40
    assert all(math.isnan(value) for value in (interval.estimate, interval.low, interval.high))


def test_interval_holds_the_estimate_and_follows_the_seed():
    detections, truths = images(0.5)
    first = bootstrap(detections, truths, seed=1, replicates=200)
    assert first.map_40.estimate == evaluate(detections, truths).map_40 == 0.5
    assert first.map_40.low < 0.5 < first.map_40.high
    assert bootstrap(detections, truths, seed=1, replicates=200).map_40 == first.map_40
    assert bootstrap(detections, truths, seed=2, replicates=200).map_40 != first.map_40


def test_interval_is_that_of_the_binomial():
    # Without false boxes AP is the share found: 40 images at one half, standard error 0.079.
    interval = bootstrap(*images(0.5), seed=0, replicates=2_000).per_class[CLASS_NAMES[0]]
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * math.sqrt(0.25 / 40), abs=0.04)


def test_classes_without_truth_have_no_interval():
    intervals = bootstrap(*images(0.5), seed=0, replicates=20)
    assert math.isnan(intervals.per_class[CLASS_NAMES[5]].estimate)
    assert math.isnan(intervals.per_class[NO_FINDING_NAME].low)


def test_a_model_does_not_differ_from_itself():
    detections, truths = images(0.5)
    difference = paired_difference(detections, detections, truths, seed=0, replicates=50).map_40_findings
    assert (difference.estimate, difference.low, difference.high) == (0, 0, 0)


def test_paired_difference_is_first_minus_second():
    better, truths = images(0.8)
    worse, _ = images(0.4)
    difference = paired_difference(better, worse, truths, seed=0, replicates=200).map_40_findings
    assert difference.estimate == pytest.approx(0.4)
    assert 0 < difference.low < 0.4 < difference.high < 1


def test_replicates_are_the_scores_of_the_images_drawn():
    detections, truths = random_images(0, num_images=10)
    values = replicate(match(detections, truths), seed=3, replicates=120)
    weights = list(weights_of_replicates(10, seed=3, replicates=120))
    assert values.shape == (120, 15)
    assert all(times.sum() == 10 for times in weights)
    assert np.mean(weights, axis=0) == pytest.approx(np.ones(10), abs=0.4)
    assert len({tuple(times) for times in weights}) > 100
    for row, times in zip(values, weights, strict=True):
        copies = [(i, k) for i, n in enumerate(times) for k in range(n)]
        drawn = [[renamed(images[i], f"{i}-{k}") for i, k in copies] for images in (detections, truths)]
        assert row.tolist() == pytest.approx(list(evaluate(*drawn).per_class.values()), nan_ok=True)


def test_interval_is_the_middle_of_the_replicates():
    detections, truths = images(0.5)
    interval = bootstrap(detections, truths, seed=1, replicates=200, level=0.5).per_class[CLASS_NAMES[0]]
    values = replicate(match(detections, truths), seed=1, replicates=200)[:, 0]
    assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(values, [0.25, 0.75])))


def test_what_is_matched_already_has_the_same_intervals():
    detections, truths = images(0.5)
    expected = bootstrap(detections, truths, seed=1, replicates=50)
    assert str(bootstrap_of(match(detections, truths), seed=1, replicates=50)) == str(expected)


def test_what_is_matched_already_has_the_same_difference():
    (better, truths), (worse, _) = images(0.8), images(0.4)
    matches = [match(detections, truths) for detections in (better, worse)]
    difference = paired_difference_of(*matches, seed=1, replicates=50, level=0.5)
    assert str(difference) == str(paired_difference(better, worse, truths, seed=1, replicates=50, level=0.5))
    first, second = (replicate(each, seed=1, replicates=50)[:, 0] for each in matches)
    interval = difference.per_class[CLASS_NAMES[0]]
    assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(first - second, [0.25, 0.75])))
