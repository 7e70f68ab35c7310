"""Gates: what P(no finding) does to boxes, and what that is worth."""

import dataclasses
import json

import numpy as np
import pytest

from tests.ensemble.members import detector, truths_of
from vbd.config import checked
from vbd.ensemble.normal.gates import GRIDS, KINDS, Gate, GatedScore, Split, choose_kind, measure_gates, tune
from vbd.evaluation.average_precision import evaluate
from vbd.records import Detections

BOXES = np.array([[0, 0, 10, 10], [20, 20, 50, 50]], np.float32)
FOUND = [
    Detections(name, BOXES, np.array([0.8, 0.4], np.float32), np.array([0, 1])) for name in ("ill", "unsure", "well")
]
P = np.array([0.1, 0.5, 0.9])
TRUTHS = truths_of(240)
MEMBER = detector(TRUTHS, 0, false_boxes=3, false_scores=(3, 2))
NORMAL = np.array([not len(truth.boxes) for truth in TRUTHS])
KNOWN, UNSEEN = slice(0, 120), slice(120, 240)


def scored(p, images=slice(None)):
    return GatedScore(MEMBER[images], p[images], TRUTHS[images])


def measured(p):
    splits = [Split(scored(p, a), scored(p, b)) for a, b in ((KNOWN, UNSEEN), (UNSEEN, KNOWN))]
    return measure_gates(scored(p), splits, seed=0, replicates=60)


def sure(strength=0.97):
    return np.where(NORMAL, strength, 1 - strength)


@pytest.mark.parametrize(
    ("gate", "left"),
    [
        (Gate(), {"ill": 0.8, "unsure": 0.8, "well": 0.8}),
        (Gate("damp", 0.0), {"ill": 0.8, "unsure": 0.8, "well": 0.8}),
        (Gate("damp", 1.0), {"ill": 0.72, "unsure": 0.4, "well": 0.08}),
        (Gate("replace", 0.5), {"ill": 0.8, "unsure": 0.8}),
        (Gate("replace", 1.0), {"ill": 0.8, "unsure": 0.8, "well": 0.8}),
        (Gate("quota", 0.34), {"ill": 0.8, "unsure": 0.8}),
        (Gate("quota", 0.0), {"ill": 0.8, "unsure": 0.8, "well": 0.8}),
    ],
)
def test_what_a_gate_leaves(gate, left):
    gated = gate.apply(FOUND, P)
    assert [found.image_id for found in gated] == ["ill", "unsure", "well"]
    assert [found.no_finding for found in gated] == P.tolist()
    assert {found.image_id: float(found.scores[0]) for found in gated if len(found.boxes)} == pytest.approx(left)


def test_the_input_is_not_changed():
    Gate("damp", 1.0).apply(FOUND, P)
    assert FOUND[2].scores[0] == np.float32(0.8)
    assert FOUND[2].no_finding is None


def test_no_images():
    for kind in KINDS:
        assert Gate(kind, GRIDS[kind][-1]).apply([], np.zeros(0)) == []


def test_what_is_damped_can_still_be_submitted_in_order():
    low = [Detections("a", BOXES[:1], np.array([1e-2], np.float32), np.zeros(1, np.int64))]
    for exponent in GRIDS["damp"]:
        (found,) = Gate("damp", exponent).apply(low, np.array([1 - 1e-6]))
        assert found.scores[0] > 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_parameter_changes_nothing(kind):
    score = scored(sure())
    assert score.score(Gate(kind, GRIDS[kind][0])) == score.score(Gate())


@pytest.mark.parametrize("gate", [Gate(), Gate("damp", 0.7), Gate("replace", 0.5), Gate("quota", 0.4)])
def test_the_score_is_that_of_the_gated_detections(gate):
    p = sure() * np.linspace(0.9, 1, len(TRUTHS))
    assert scored(p).score(gate) == pytest.approx(evaluate(gate.apply(MEMBER, p), TRUTHS).map_40, abs=1e-12)


def test_without_any_estimate_class_14_scores_zero():
    assert scored(sure()).score(None) == pytest.approx(evaluate(MEMBER, TRUTHS).map_40, abs=1e-12)
    assert evaluate(MEMBER, TRUTHS).per_class["No finding"] == 0


def test_a_classifier_that_knows_makes_every_gate_worth_it():
    worths = measured(sure())
    # Four classes have ground truth, the fourth being "No finding", which is told without a fault.
    assert worths["append"].over_nothing.estimate == pytest.approx(1 / 4)
    assert worths["append"].over_append.estimate == 0
    for kind in ("damp", "replace", "quota"):
        assert worths[kind].over_append.low > 0.01
    # All boxes in normal images are false: the best is to take away exactly these.
    assert worths["replace"].parameter < 0.97
    assert worths["quota"].parameter == pytest.approx(NORMAL.mean(), abs=0.1)
    assert worths["replace"].score == pytest.approx(max(worth.score for worth in worths.values()))


def test_a_classifier_that_knows_nothing_gains_nothing_by_taking_boxes_away():
    rng = np.random.default_rng(0)
    worths = measured(rng.uniform(size=len(TRUTHS)))
    for kind in ("damp", "replace", "quota"):
        assert worths[kind].over_append.estimate < 0.01
    assert worths["append"].parameter == 0
    assert worths["quota"].parameter <= 0.05


def test_a_gate_is_tuned_without_the_images_it_is_scored_on():
    """Where the unseen images would want another parameter, they do not get it."""
    p = sure()
    p[UNSEEN] = 1 - p[UNSEEN]
    worth = measured(p)["replace"]
    assert worth.parameters[0] < 1  # on images where p is right
    assert worth.parameters[1] == 1  # where it is wrong
    split = Split(scored(p, KNOWN), scored(p, UNSEEN))
    alone = measure_gates(scored(p), [split], seed=0, replicates=5)["replace"]
    assert alone.over_append.estimate < -0.05
    assert alone.score == scored(p, UNSEEN).score(Gate("replace", worth.parameters[0]))


def test_a_known_best_parameter_is_found():
    p = np.where(NORMAL, 0.93, np.linspace(0, 0.87, len(TRUTHS)))
    gate, scores = tune("replace", scored(p))
    assert gate == Gate("replace", 0.9)
    assert max(scores) == scores[GRIDS["replace"].index(0.9)]


def test_curves_hold_the_score_of_each_parameter():
    p = sure()
    worth = measured(p)["damp"]
    assert len(worth.grid) == len(worth.known_scores) == len(worth.unseen_scores)
    halves = [scored(p, part).score(Gate("damp", worth.grid[3])) for part in (UNSEEN, KNOWN)]
    assert worth.unseen_scores[3] == pytest.approx(np.mean(halves))
    assert worth.known_scores[3] == scored(p).score(Gate("damp", worth.grid[3]))


def test_boxes_are_taken_away_only_when_asked():
    worths = measured(sure())
    assert choose_kind("auto", worths) == "damp"
    assert choose_kind("replace", worths) == "replace"
    worse = {
        **worths,
        "damp": dataclasses.replace(
            worths["damp"], over_append=dataclasses.replace(worths["damp"].over_append, estimate=-0.001)
        ),
    }
    assert choose_kind("auto", worse) == "append"
    assert choose_kind("damp", worse) == "damp"


def test_a_gate_survives_json():
    gate = Gate("damp", 0.2)
    assert checked.parse(json.dumps(dataclasses.asdict(gate)).encode(), Gate, where="here", again="") == gate
