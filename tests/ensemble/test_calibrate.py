"""Calibrated scores."""

import dataclasses
import json

import numpy as np
import pytest

from vbd.config import checked
from vbd.ensemble.scores.calibrate import (
    Calibration,
    calibrate_crosswise,
    fit_calibration,
    split_parts,
)
from vbd.errors import InputError
from vbd.evaluation.average_precision import evaluate
from vbd.fusion.detections import fuse_all
from vbd.records import Detections, Truth

HIT, MISS = [0, 0, 10, 10], [50, 50, 60, 60]


def simulated(seed, num_images=400, squash=1.0, noise=1.0):
    """One box per image; it is a finding with a chance that rises with the raw score, which is `squash`ed."""
    truths, detections = [], []
    for i in range(num_images):
        is_ill = np.random.default_rng(i).uniform() < 0.4
        rng = np.random.default_rng([seed, i])
        logit = (1.5 if is_ill else -1.5) + noise * rng.normal()
        score = np.float32(squash / (1 + np.exp(-logit)))
        box = np.array([HIT if is_ill else MISS], np.float32)
        truth_box = np.array([HIT] if is_ill else [], np.float32).reshape(-1, 4)
        label = np.zeros(len(truth_box), np.int64)
        truths.append(Truth(f"i{i}", truth_box, label, label + 1))
        detections.append(Detections(f"i{i}", box, np.array([score]), np.zeros(1, np.int64)))
    return detections, truths


def scores_of(detections):
    return np.concatenate([found.scores for found in detections])


def test_nothing_to_learn_from():
    calibration = fit_calibration([], [])
    (found,) = calibration.apply(
        [Detections("a", np.array([HIT], np.float32), np.ones(1, np.float32) / 2, np.zeros(1, int))]
    )
    assert found.scores == pytest.approx(0.5)
    assert calibration.apply([Detections("a")])[0].boxes.shape == (0, 4)


def test_calibrated_scores_are_the_share_of_true_positives():
    detections, truths = simulated(0, squash=0.2)
    held_out, held_out_truths = simulated(1, squash=0.2)
    calibrated = scores_of(fit_calibration(detections, truths).apply(held_out))
    is_hit = np.array([len(truth.boxes) > 0 for truth in held_out_truths])
    assert scores_of(held_out).max() < 0.2
    for low, high in ((0, 0.3), (0.7, 1.01)):
        rows = (calibrated >= low) & (calibrated < high)
        assert calibrated[rows].mean() == pytest.approx(is_hit[rows].mean(), abs=0.08)


def test_ranking_within_a_class_survives():
    detections, truths = simulated(0)
    raw = np.linspace(0, 1, 5_001)
    for curve in (fit_calibration(detections, truths).pooled, fit_calibration(detections[:5], truths[:5]).pooled):
        assert (np.diff(curve(raw)) > 0).all()
        assert curve(raw)[0] >= 0
        assert curve(raw)[-1] <= 1
    before, after = (
        evaluate(detections, truths),
        evaluate(fit_calibration(detections, truths).apply(detections), truths),
    )
    assert after.map_40_findings == pytest.approx(before.map_40_findings)


def test_only_classes_with_enough_boxes_have_their_own_curve():
    detections, truths = simulated(0)
    assert list(fit_calibration(detections, truths).per_class) == [0]
    assert not fit_calibration(detections, truths, min_positives=1_000).per_class


def test_applied_detections_are_in_order_and_the_input_is_not_changed():
    boxes = np.array([HIT, MISS], np.float32)
    image = Detections("i0", boxes, np.array([0.9, 0.1], np.float32), np.array([0, 1]))
    detections, truths = simulated(0)
    calibration = fit_calibration(detections, truths)
    (found,) = calibration.apply([image])
    assert (np.diff(found.scores) <= 0).all()
    assert image.scores.tolist() == pytest.approx([0.9, 0.1])


def test_raw_fusion_is_worse_than_the_better_family_and_calibrated_fusion_better():
    soft, truths = simulated(0, num_images=1_500, squash=0.02, noise=2.0)  # the better one, which speaks softly
    loud, _ = simulated(5, num_images=1_500, noise=3.0)
    loud = [dataclasses.replace(found, scores=0.5 + 0.5 * found.scores) for found in loud]  # overconfident

    def score(*members):
        return evaluate(fuse_all(members, [1] * len(members)), truths).map_40_findings

    better = max(score(soft), score(loud))
    calibrated = [calibrate_crosswise(member, truths) for member in (soft, loud)]
    assert score(soft) == better
    assert score(soft, loud) < better - 0.01
    assert score(*calibrated) > better + 0.01


def test_fits_survive_json():
    detections, truths = simulated(0)
    calibration = fit_calibration(detections, truths)
    assert checked.parse(json.dumps(calibration.to_json()).encode(), Calibration, where="here", again="") == calibration


def test_crosswise_calibration_has_not_seen_the_image():
    detections, truths = simulated(0, num_images=60)
    changed = [Truth(truths[0].image_id), *truths[1:]]
    first, second = (calibrate_crosswise(detections, each)[0] for each in (truths, changed))
    assert np.array_equal(first.scores, second.scores)


def test_parts_depend_on_the_id_alone():
    ids = [f"i{i}" for i in range(200)]
    parts = split_parts(ids, 4)
    assert set(parts) == {0, 1, 2, 3}
    assert split_parts(ids[::-1], 4).tolist() == parts[::-1].tolist()
    assert split_parts(ids, 4, seed=1).tolist() != parts.tolist()


def test_an_image_without_ground_truth_is_told():
    with pytest.raises(InputError, match="'x'"):
        fit_calibration([Detections("x")], [])
