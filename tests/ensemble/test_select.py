"""Which models to fuse."""

import dataclasses
import functools

import numpy as np
import pytest

from tests.ensemble.members import detector
from vbd.ensemble.choose.greedy import select_members
from vbd.ensemble.choose.select import Procedure, choose, honest_gain
from vbd.ensemble.choose.weight_search import search_weights
from vbd.ensemble.scores.calibrate import split_parts
from vbd.errors import InputError
from vbd.evaluation.average_precision import evaluate
from vbd.fusion.detections import fuse_all
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


member = functools.partial(detector, room=500)


def away(detections):
    """The same boxes where no finding lies."""
    return [dataclasses.replace(found, boxes=found.boxes + 2_000) for found in detections]


TRUTHS, MANY = truths_of(120), truths_of(300)
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


@pytest.mark.parametrize("procedure", [Procedure(), Procedure(calibrate=False, trials=5)])
def test_do_not_ensemble_copies_of_one_model(procedure):
    copies = dict.fromkeys(("m0", "copy", "another"), ALIKE["m0"])
    result = honest_gain(copies, TRUTHS, seed=0, replicates=50, procedure=procedure)
    assert result.verdict == "single"
    assert result.gain.estimate == 0
    assert set(result.selections[0].single_scores) == set(copies)


@pytest.mark.parametrize("seed", range(3))
def test_do_not_ensemble_one_model_with_noise(seed):
    # Where no finding lies: a box that meets one by luck is a gain, if a small one.
    noise = {f"noise{k}": away(member(TRUTHS, 10 * seed + k, found=0.0, false_boxes=6)) for k in range(3)}
    members = {"m0": ALIKE["m0"]} | noise
    for procedure in (Procedure(), Procedure(calibrate=False)):
        result = honest_gain(members, TRUTHS, seed=seed, replicates=50, procedure=procedure)
        assert result.verdict == "single"
        assert result.gain.estimate == pytest.approx(0, abs=1e-9)
    searched = honest_gain(members, TRUTHS, seed=seed, replicates=50, procedure=Procedure(trials=8))
    assert searched.verdict != "ensemble"


def test_an_overconfident_family_is_fused_for_its_worth_once_calibrated():
    loud = [dataclasses.replace(found, scores=0.9 + 0.1 * found.scores) for found in member(MANY, 5, jitter=4.0)]
    soft = [dataclasses.replace(found, scores=0.1 * found.scores) for found in member(MANY, 6, jitter=4.0)]
    members = {"loud": loud, "soft": soft}
    raw, calibrated = (
        honest_gain(members, MANY, seed=0, replicates=100, procedure=Procedure(calibrate=calibrate))
        for calibrate in (False, True)
    )
    assert calibrated.verdict == "ensemble"
    assert calibrated.fused > raw.fused + 0.02


def test_what_is_held_out_takes_no_part_in_choosing_or_calibrating():
    members = {"m0": member(MANY, 0), "m1": member(MANY, 1)}
    part_of = split_parts([truth.image_id for truth in MANY], 2, seed=0, purpose="held out")
    changed = [Truth(t.image_id) if part == 0 else t for t, part in zip(MANY, part_of, strict=True)]
    first, second = (
        honest_gain(members, truths, seed=0, replicates=5, procedure=Procedure(trials=4)) for truths in (MANY, changed)
    )
    # What was chosen on part 1 to be scored on part 0, and the other way round.
    assert first.selections[0] == second.selections[0]
    assert first.selections[1] != second.selections[1]


def test_the_choice_is_what_its_fused_detections_score():
    members = {"m0": member(MANY, 0), "m1": member(MANY, 1)}
    plain = choose(members, MANY, seed=0, procedure=Procedure(calibrate=False, trials=6))
    assert evaluate(plain.fuse(members), MANY).map_40_findings == pytest.approx(plain.selection.score)
    calibrated = choose(members, MANY, seed=0)
    assert set(calibrated.calibrations) == {*calibrated.selection.weights, calibrated.selection.best_single}
    assert evaluate(calibrated.fuse(members), MANY).map_40_findings == pytest.approx(
        calibrated.selection.score, abs=0.05
    )


def test_a_search_finds_weights_that_the_greedy_selection_cannot():
    start = select_members(ALIKE, TRUTHS, rounds=2)
    found = search_weights(ALIKE, TRUTHS, start, seed=0, trials=15)
    assert len(found.search) == 15
    # The first trial is where the greedy selection ended.
    assert found.search[0] == pytest.approx(start.score)
    assert found.score == max(found.search) > start.score
    assert sum(found.weights.values()) == pytest.approx(1)
    assert evaluate(found.fuse(ALIKE), TRUTHS).map_40_findings == pytest.approx(found.score)


def test_a_search_that_finds_nothing_better_changes_nothing():
    start = select_members(ALIKE, TRUTHS)
    found = search_weights(ALIKE, TRUTHS, start, seed=0, trials=4, min_gain=1.0)
    assert dataclasses.replace(found, search=()) == start


def test_equal_seeds_choose_alike():
    first, second = (choose(ALIKE, TRUTHS, seed=3, procedure=Procedure(trials=6)) for _ in range(2))
    assert first == second
    assert choose(ALIKE, TRUTHS, seed=4, procedure=Procedure(trials=6)).selection.search != first.selection.search


def test_without_images_there_is_no_gain():
    result = honest_gain({"m0": []}, [], seed=0, replicates=5)
    assert result.verdict == "single"
    assert np.isnan(result.gain.low)
