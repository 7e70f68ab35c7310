"""Curves from scores to probabilities."""

import dataclasses
import json

import numpy as np
import pytest

from vbd.config import checked
from vbd.ensemble.scores.curves import KINDS, Curve, fit_best, fit_curve, losses_of, out_of_fold


def drawn(probability, n=6_000, seed=0):
    """Scores, and hits with the probability that a function gives them."""
    rng = np.random.default_rng(seed)
    scores = rng.beta(0.6, 2, n).clip(1e-4, 1 - 1e-4)
    return scores, rng.uniform(size=n) < probability(scores), rng.integers(0, 3, n)


def beta(a, b, c):
    return lambda s: 1 / (1 + np.exp(-(a * np.log(s) - b * np.log1p(-s) + c)))


def stairs(scores):
    return np.where(scores < 0.1, 0.02, np.where(scores < 0.5, 0.5, 0.55))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hits", ["none", "all", "some"])
def test_every_curve_rises_strictly_within_zero_to_one(kind, hits):
    scores, some, _ = drawn(beta(1, 1, 0), 200)
    is_hit = {"none": np.zeros(200, bool), "all": np.ones(200, bool), "some": some}[hits]
    values = fit_curve(kind, scores, is_hit)(np.linspace(0, 1, 2_001))
    assert (np.diff(values) > 0).all()
    assert values[0] >= 0
    assert values[-1] <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_curve_on_one_box_or_none(kind):
    one = fit_curve(kind, np.array([0.3]), np.array([True]))(np.array([0.2, 0.4]))
    assert np.isfinite(one).all()
    assert fit_curve(kind, np.zeros(0), np.zeros(0, bool))(np.array([0.25])) == pytest.approx(0.25)


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_come_near_the_truth(kind):
    true = beta(0.7, 0.3, -0.5)
    curve = fit_curve(kind, *drawn(true, 20_000)[:2])
    at = np.array([0.01, 0.05, 0.2, 0.5])
    np.testing.assert_allclose(curve(at), true(at), atol=0.04)


def test_beta_finds_its_coefficients():
    curve = fit_curve("beta", *drawn(beta(0.7, 0.3, -0.5), 50_000)[:2])
    assert curve.coefficients == pytest.approx((0.7, 0.3, -0.5), abs=0.1)


def test_beta_never_falls():
    scores, hits, _ = drawn(beta(-1, 0.2, 0))
    a, b, _ = fit_curve("beta", scores, hits).coefficients
    assert a == 0
    assert b >= 0


def test_rank_does_not_mind_a_distortion_that_keeps_the_order():
    scores, hits, _ = drawn(beta(1, 0.5, 0))
    plain, squeezed = (
        curve._probabilities(values)
        for curve, values in ((fit_curve("rank", v, hits), v) for v in (scores, 0.9 + 0.1 * scores**3))
    )
    np.testing.assert_allclose(plain, squeezed, atol=0.02)
    assert np.abs(scores - plain).max() > 0.1


def test_isotonic_gives_boxes_of_one_score_their_share():
    scores = np.repeat([0.2, 0.6], 500)
    hits = np.arange(1000) % 10 < np.where(scores < 0.5, 1, 4)
    assert fit_curve("isotonic", scores, hits)._probabilities(np.array([0.2, 0.6])) == pytest.approx(
        [0.1, 0.4], abs=0.01
    )


@pytest.mark.parametrize(("truth", "kinds"), [(beta(0.7, 0.3, -0.5), {"beta"}), (stairs, {"isotonic"})])
def test_the_kind_that_predicts_best_is_chosen(truth, kinds):
    scores, hits, parts = drawn(truth, 1_500 if truth is not stairs else 20_000)
    curve = fit_best(scores, hits, parts)
    assert curve.kind in kinds
    assert set(curve.losses) == set(KINDS)
    assert curve.losses[curve.kind].log_loss == pytest.approx(
        min(each.log_loss for each in curve.losses.values()), rel=0.02
    )
    assert curve == dataclasses.replace(fit_curve(curve.kind, scores, hits), losses=curve.losses)


def test_without_both_outcomes_in_two_parts_there_is_no_choice():
    scores, hits, parts = drawn(beta(1, 1, 0), 60)
    curve = fit_best(scores, hits & (parts == 0), parts)
    assert curve.kind == "beta"
    assert not curve.losses


def test_a_box_is_told_by_fits_that_have_not_seen_its_part():
    scores, hits, parts = drawn(beta(1, 1, 0), 300)
    changed = np.where(parts == 0, ~hits, hits)
    for kind in KINDS:
        first, second = (out_of_fold(kind, scores, each, parts) for each in (hits, changed))
        assert np.array_equal(first[parts == 0], second[parts == 0])
        assert not np.array_equal(first[parts == 1], second[parts == 1])


def test_losses_by_hand():
    losses = losses_of(np.array([0.8, 0.4]), np.array([True, False]))
    assert losses.brier == pytest.approx((0.04 + 0.16) / 2)
    assert losses.log_loss == pytest.approx(-(np.log(0.8) + np.log(0.6)) / 2)
    assert np.isfinite(losses_of(np.array([0.0]), np.array([True])).log_loss)


def _through_json(curve: Curve) -> Curve:
    return checked.parse(json.dumps(dataclasses.asdict(curve)).encode(), Curve, where="here", again="")


def test_curves_survive_json():
    for kind in KINDS:
        curve = fit_curve(kind, *drawn(stairs, 300)[:2])
        assert _through_json(curve) == curve
    best = fit_best(*drawn(stairs, 300))
    assert _through_json(best) == best
