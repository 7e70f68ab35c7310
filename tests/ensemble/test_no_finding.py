"""P(no finding) from boxes, from classifiers, and from both."""

import dataclasses
import json

import numpy as np
import pytest

from vbd.config import checked
from vbd.ensemble.normal.no_finding import (
    Evidence,
    NoFinding,
    are_normal,
    area_under_curve,
    crosswise,
    fit_best_source,
    fit_no_finding,
    mean_logits,
    score_probabilities,
)
from vbd.errors import InputError
from vbd.records import Detections, Truth

BOX = np.array([[0, 0, 10, 10]], np.float32)


def simulated(num_images=400, *, boxes=1.0, classifiers=1.0):
    """Images a third of which are normal, with evidence of some strength from each side; 0 tells nothing."""
    rng = np.random.default_rng(3)
    normal = rng.uniform(size=num_images) < 1 / 3
    sides = np.where(normal, 1.0, -1.0)
    scores = 1 / (1 + np.exp(boxes * sides + rng.normal(size=num_images)))
    found = [
        Detections(f"i{i}", BOX, np.array([score], np.float32), np.zeros(1, np.int64)) for i, score in enumerate(scores)
    ]
    return Evidence(found, classifiers * sides + rng.normal(size=num_images)), normal


def test_nothing_to_learn_from():
    empty = Evidence([], None)
    model = fit_no_finding(empty, np.zeros(0, bool), "boxes")
    assert model.probabilities(Evidence([Detections("a")], None)) == pytest.approx(0.5)


@pytest.mark.parametrize("is_normal", [True, False])
def test_images_of_one_kind_give_their_smoothed_share(is_normal):
    evidence, normal = simulated()
    chosen = np.flatnonzero(normal == is_normal)[:8]
    model = fit_no_finding(evidence.take(chosen), normal[chosen], "both")
    assert model.probabilities(evidence)[:2] == pytest.approx(0.9 if is_normal else 0.1)


@pytest.mark.parametrize(
    ("strengths", "best"),
    [
        ({"boxes": 2.0, "classifiers": 0.0}, {"boxes", "both"}),
        ({"boxes": 0.0, "classifiers": 2.0}, {"classifiers", "both"}),
        ({"boxes": 1.5, "classifiers": 1.5}, {"both"}),
    ],
)
def test_the_source_that_knows_is_used(strengths, best):
    evidence, normal = simulated(1_000, **strengths)
    fitted = fit_best_source(evidence, normal, seed=0)
    assert fitted.model.source in best
    useless = {"boxes", "classifiers"} - best
    assert all(fitted.log_losses[source] > min(fitted.log_losses.values()) + 0.1 for source in useless)


def test_probabilities_are_honest():
    evidence, normal = simulated(1_000)
    fitted = fit_best_source(evidence, normal, seed=0)
    p = fitted.out_of_fold
    assert p.mean() == pytest.approx(normal.mean(), abs=0.03)
    for low, high in ((0, 0.3), (0.3, 0.7), (0.7, 1)):
        rows = (p >= low) & (p < high)
        assert p[rows].mean() == pytest.approx(normal[rows].mean(), abs=0.08)


def test_an_image_takes_no_part_in_what_it_is_told():
    evidence, normal = simulated(60)
    for source in evidence.sources:
        first, second = (
            crosswise(evidence, each, source, seed=0)[0] for each in (normal, normal ^ (np.arange(60) == 0))
        )
        assert first == second


def test_sources_are_those_that_there_are():
    assert Evidence([], None).sources == ("boxes",)
    assert Evidence([], np.zeros(0), has_boxes=False).sources == ("classifiers",)
    assert Evidence([], np.zeros(0)).sources == ("boxes", "classifiers", "both")


def test_the_extremes_can_be_submitted():
    evidence, normal = simulated(200, classifiers=60.0)
    p = fit_best_source(evidence, normal, seed=0).model.probabilities(evidence)
    assert ((p > 0) & (p < 1)).all()


def test_logits_are_averaged_over_checkpoints_and_then_over_members():
    def told(p):
        return [Detections("a", no_finding=p)]

    logits = mean_logits({"one": [told(0.5), told(0.5), told(0.5)], "two": [told(0.9)]}, ["a"])
    assert logits == pytest.approx(np.log(9) / 2)
    assert mean_logits({}, ["a"]) is None
    assert np.isfinite(mean_logits({"sure": [told(1.0)]}, ["a"])).all()


def test_a_classifier_without_an_estimate_is_told():
    with pytest.raises(InputError, match=r"classifier-1: .*'b'"):
        mean_logits({"classifier-1": [[Detections("a", no_finding=0.5), Detections("b")]]}, ["a", "b"])


def test_scores_of_probabilities():
    normal = np.array([True, True, False, False])
    good = score_probabilities(np.array([0.9, 0.8, 0.2, 0.1]), normal, seed=0, replicates=50)
    assert good.average_precision == good.auc == 1
    assert good.log_loss.low <= good.log_loss.estimate <= good.log_loss.high
    assert good.log_loss.estimate == pytest.approx(-np.log([0.9, 0.8, 0.8, 0.9]).mean())
    bad = score_probabilities(np.array([0.1, 0.9, 0.2, 0.8]), normal, seed=0, replicates=50)
    assert bad.auc == 0.5
    assert bad.average_precision == pytest.approx((1 + 2 / 4) / 2)


def test_area_under_the_curve_counts_ties_as_half():
    assert area_under_curve(np.array([0.5, 0.5]), np.array([True, False])) == 0.5
    assert np.isnan(area_under_curve(np.array([0.5]), np.array([True])))


def test_a_fit_survives_json():
    evidence, normal = simulated(50)
    model = fit_no_finding(evidence, normal, "both")
    assert checked.parse(json.dumps(model.to_json()).encode(), NoFinding, where="here", again="") == model


def test_what_is_normal():
    truth = Truth("a", BOX, np.zeros(1, np.int64))
    assert are_normal([truth, dataclasses.replace(truth, boxes=BOX[:0])]).tolist() == [False, True]
