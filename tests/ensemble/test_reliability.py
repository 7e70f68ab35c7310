"""Reliability diagrams."""

import json

import numpy as np
import pytest

from vbd.ensemble.scores.calibrate import calibrate_crosswise
from vbd.ensemble.scores.reliability import reliability
from vbd.records import Detections, Truth

BOX, ELSEWHERE = [0, 0, 10, 10], [50, 50, 60, 60]


def simulated(num_images, exponent=1.0, label=0):
    """A box per image that is a finding with probability p, and says p to the power of `exponent`."""
    detections, truths = [], []
    for i in range(num_images):
        rng = np.random.default_rng(i)
        p = rng.uniform()
        is_ill = rng.uniform() < p
        boxes = np.array([BOX] if is_ill else [], np.float32).reshape(-1, 4)
        labels = np.full(len(boxes), label, np.int64)
        truths.append(Truth(f"i{i}", boxes, labels, np.ones(len(boxes), np.int64)))
        scores = np.array([p**exponent], np.float32)
        detections.append(Detections(f"i{i}", np.array([BOX], np.float32), scores, np.array([label])))
    return detections, truths


def test_by_hand():
    boxes = np.array([BOX, ELSEWHERE], np.float32)
    truth = Truth("a", boxes[:1], np.zeros(1, np.int64), np.ones(1, np.int64))
    found = Detections("a", boxes, np.array([0.9, 0.3], np.float32), np.zeros(2, np.int64), no_finding=0.2)
    result = reliability([found], [truth], seed=0, bins=2, replicates=10)
    assert result.edges == (0, 0.5, 1)
    assert result.counts == (1, 1)
    assert result.mean_scores == pytest.approx((0.3, 0.9))
    assert result.hit_shares == (0, 1)
    assert result.error.estimate == pytest.approx((0.3 + 0.1) / 2)
    assert result.brier == pytest.approx((0.09 + 0.01) / 2)


def test_scores_that_keep_their_word_have_a_small_error_and_calibration_makes_them_so():
    honest, truths = simulated(2_000)
    loud, _ = simulated(2_000, exponent=0.2)
    errors = [
        reliability(each, truths, seed=0, replicates=200).error
        for each in (honest, loud, calibrate_crosswise(loud, truths))
    ]
    assert errors[0].low < 0.03
    assert errors[1].low > 0.2
    assert errors[2].high < 0.06
    assert all(error.low <= error.estimate <= error.high for error in errors[1:2])


def test_a_perfect_score_is_in_the_last_bin_and_other_labels_are_left_out():
    detections, truths = simulated(20, exponent=0.0, label=3)
    assert reliability(detections, truths, seed=0, label=3, replicates=5).counts[-1] == 20
    assert sum(reliability(detections, truths, seed=0, label=4, replicates=5).counts) == 0


def test_nothing_found_is_unknown_in_json_too():
    for truths in ([], [Truth("a")]):
        result = reliability([], truths, seed=0, replicates=5)
        assert np.isnan(result.error.estimate)
        assert json.loads(json.dumps(result.to_json()))["hit_shares"] == [None] * 15


def test_equal_seeds_give_equal_intervals():
    detections, truths = simulated(60)
    first, second, other = (reliability(detections, truths, seed=seed, replicates=50) for seed in (0, 0, 1))
    assert first == second
    assert first.error != other.error
