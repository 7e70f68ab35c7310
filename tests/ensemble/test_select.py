"""Which models to fuse."""

import numpy as np
import pytest

from vbd.ensemble.fusion import fuse_all
from vbd.ensemble.select import honest_gain, select_members
from vbd.errors import InputError
from vbd.evaluation.average_precision import evaluate
from vbd.records import Detections, Truth


def truths_of(num_images):
    truths = []
    for i in range(num_images):
        rng = np.random.default_rng(i)
        n = int(rng.integers(1, 4))
        corner = rng.uniform(0, 500, (n, 2))
        boxes = np.hstack([corner, corner + rng.uniform(60, 120, (n, 2))]).astype(np.float32)
        truths.append(Truth(f"i{i}", boxes, rng.integers(0, 3, n), np.ones(n, np.int64)))
    return truths


def member(truths, seed, *, found=0.6, false_boxes=2, jitter=8.0):
    """A model that finds a share of the findings, and false boxes of its own that score lower on the whole."""
    detections = []
    for i, truth in enumerate(truths):
        rng = np.random.default_rng([seed, i])
        seen = rng.uniform(size=len(truth.boxes)) < found
        hits = truth.boxes[seen] + rng.normal(0, jitter, (seen.sum(), 4))
        corner = rng.uniform(0, 500, (false_boxes, 2))
        boxes = np.vstack([hits, np.hstack([corner, corner + rng.uniform(60, 120, (false_boxes, 2))])])
        scores = np.append(rng.beta(3, 2, seen.sum()), rng.beta(2, 3, false_boxes))
        labels = np.append(truth.labels[seen], rng.integers(0, 3, false_boxes))
        order = np.argsort(-scores)
        detections.append(
            Detections(
                truth.image_id,
                boxes[order].astype(np.float32),
                scores[order].astype(np.float32),
                labels[order].astype(np.int64),
            )
        )
    return detections


TRUTHS = truths_of(120)
ALIKE = {f"m{seed}": member(TRUTHS, seed) for seed in range(3)}


def test_no_models_to_choose_from():
    with pytest.raises(InputError, match="no model"):
        select_members({}, TRUTHS)


def test_a_lone_model_is_its_own_ensemble():
    selection = select_members({"m0": ALIKE["m0"]}, TRUTHS)
    assert selection.weights == {"m0": 1.0}
    assert selection.score == pytest.approx(evaluate(ALIKE["m0"], TRUTHS).map_40_findings)


def test_models_that_found_nothing_score_zero():
    selection = select_members({"silent": [Detections("i0")], "m0": ALIKE["m0"]}, TRUTHS)
    assert selection.single_scores["silent"] == 0
    assert selection.best_single == "m0"


def test_equally_good_independent_models_are_fused():
    selection = select_members(ALIKE, TRUTHS)
    assert len(selection.weights) > 1
    assert sum(selection.weights.values()) == pytest.approx(1)
    assert selection.score > max(selection.single_scores.values())
    scores = [step.score for step in selection.history]
    assert scores == sorted(scores)


def test_the_score_is_that_of_the_fused_detections():
    selection = select_members(ALIKE, TRUTHS)
    fused = fuse_all([ALIKE[name] for name in selection.weights], list(selection.weights.values()))
    assert evaluate(fused, TRUTHS).map_40_findings == pytest.approx(selection.score)


def test_a_useless_model_is_left_out():
    noise = member(TRUTHS, 9, found=0.0, false_boxes=10)
    assert "noise" not in select_members(ALIKE | {"noise": noise}, TRUTHS).weights


def test_rounds_bound_the_number_of_members():
    assert len(select_members(ALIKE, TRUTHS, rounds=1).weights) == 1


def test_an_image_without_ground_truth_is_told():
    with pytest.raises(InputError, match="'x'"):
        select_members({"m": [Detections("x")]}, TRUTHS)


def test_honest_gain_of_independent_models_is_above_zero():
    result = honest_gain(ALIKE, TRUTHS, seed=0, replicates=200)
    assert result.verdict == "ensemble"
    assert result.gain.estimate == pytest.approx(result.fused - result.single)
    assert 0 < result.gain.low < result.gain.estimate < result.gain.high
    assert len(result.selections) == 2


def test_do_not_ensemble_copies_of_one_model():
    result = honest_gain({"m0": ALIKE["m0"], "copy": ALIKE["m0"]}, TRUTHS, seed=0, replicates=50)
    assert result.verdict != "ensemble"


def test_do_not_ensemble_one_model_with_noise():
    noise = member(TRUTHS, 9, found=0.0, false_boxes=10)
    result = honest_gain({"m0": ALIKE["m0"], "noise": noise}, TRUTHS, seed=0, replicates=50)
    assert result.verdict == "single"
    assert result.gain.estimate == 0


def test_without_images_there_is_no_gain():
    result = honest_gain({"m0": []}, [], seed=0, replicates=5)
    assert result.verdict == "single"
    assert np.isnan(result.gain.low)
