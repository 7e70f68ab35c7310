"""Arms of a comparison, on made-up tables whose best arm is known."""

import numpy as np
import pytest

from tests.evaluation.images import random_images
from vbd.evaluation.arms import (
    Errors,
    compare,
    differences,
    errors_of,
    errors_of_samples,
    more_seeds,
    replicates_of,
    spread_of,
    whole_blocks,
)
from vbd.evaluation.average_precision import evaluate
from vbd.evaluation.matching import match

FOLDS = np.array([0, 1, 2, 0, 1, 2])  # of six blocks: two seeds on each of three folds


def study(rng, means, *, seed_sd=0.01, image_sd=0.0, folds=FOLDS, replicates=100):
    """Scores (arms, blocks) of arms with these means, and of redrawn images; the images of a fold are one draw."""
    arms, blocks = len(means), len(folds)

    def of_images(count):
        return rng.normal(0, image_sd, (count, arms, max(folds) + 1))[:, :, folds]

    easy = rng.normal(0, 0.05, blocks)  # a block is easy for all arms alike
    scores = np.asarray(means)[:, None] + easy + rng.normal(0, seed_sd, (arms, blocks)) + of_images(1)[0]
    return scores, scores + of_images(replicates)


def compared(scores, replicates=None):
    return compare(scores.mean(1), errors_of(spread_of(scores, replicates), seed=0))


def test_a_clear_best_arm_is_told_and_how_far_the_others_are_behind():
    found = compared(*study(np.random.default_rng(0), [0.2, 0.3, 0.25], seed_sd=0.004, image_sd=0.004))
    assert found.best == 1
    assert found.may_be_best == (False, True, False)
    first, best, last = found.behind
    assert first.low < 0.1 < first.high
    assert 0 < last.low < 0.05 < last.high
    assert (best.estimate, best.low, best.high) == (0, 0, 0)


def test_equal_arms_are_not_told_apart_and_the_best_is_rarely_left_out():
    """In 20 of 20 studies but about one the true best is among those that may be the best; here of 60 each."""
    rng = np.random.default_rng(1)
    alone, missed, near = 0, 0, 0
    for _ in range(60):
        found = compared(*study(rng, [0.3] * 5, seed_sd=0.01, image_sd=0.01))
        alone += sum(found.may_be_best) == 1
        missed += not found.may_be_best[0]
        found = compared(*study(rng, [0.3, 0.31, 0.3, 0.3, 0.3], seed_sd=0.01, image_sd=0.01))
        near += not found.may_be_best[1]
    assert alone <= 3
    assert missed <= 5
    assert near <= 5


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    """Two seeds of one fold leave two degrees of freedom to three arms: intervals must be wide."""
    rng = np.random.default_rng(2)
    means, folds = np.array([0.3, 0.32, 0.35]), np.array([0, 0])
    covered = []
    for _ in range(100):
        found = compared(*study(rng, means, seed_sd=0.01, image_sd=0.01, folds=folds))
        gaps = means[found.best] - means
        covered.append([gap.low <= truth <= gap.high for gap, truth in zip(found.behind, gaps, strict=True)])
    assert np.mean(np.all(covered, axis=1)) > 0.9
    narrow = compared(*study(rng, means, seed_sd=0.0005, image_sd=0.01, folds=folds))
    assert narrow.behind[0].high - narrow.behind[0].low < 0.15


def test_two_blocks_claim_less_than_a_bootstrap_of_blocks_would():
    scores = np.array([[0.30, 0.31], [0.32, 0.325]])
    assert compared(scores).may_be_best == (True, True)  # a t of 7 with one degree of freedom
    assert compared(np.array([[0.30, 0.31], [0.62, 0.630001]])).may_be_best == (False, True)


def test_what_makes_a_block_easy_for_all_is_no_spread():
    scores, _ = study(np.random.default_rng(3), [0.3, 0.32])
    harder = scores - np.linspace(0, 0.2, len(FOLDS))
    assert spread_of(harder).residual == pytest.approx(spread_of(scores).residual)


def test_the_images_part_of_the_residual_is_taken_out():
    rng = np.random.default_rng(4)
    spread = spread_of(*study(rng, [0.3] * 20, seed_sd=0.01, image_sd=0.02, folds=np.arange(6), replicates=400))
    assert spread.of_images == pytest.approx(0.02**2, rel=0.1)
    assert spread.of_training == pytest.approx(0.01**2, rel=0.8)
    assert spread.residual == pytest.approx(0.02**2 + 0.01**2, rel=0.3)


def test_with_one_block_only_the_images_count():
    scores, replicates = study(np.random.default_rng(5), [0.3, 0.4], seed_sd=0, image_sd=0.01, folds=np.array([0]))
    spread = spread_of(scores, replicates)
    assert (spread.covers_images, spread.covers_training) == (True, False)
    found = compared(scores, replicates)
    # The standard error of a difference of two independent scores, times 1.96.
    assert found.behind[0].high - found.behind[0].estimate == pytest.approx(1.96 * 0.01 * 2**0.5, rel=0.2)
    with pytest.raises(ValueError, match="one block"):
        more_seeds(spread, [0, 1], difference=0.01, folds=1, most=10, seed=0)


def test_with_neither_blocks_nor_images_there_is_nothing_to_tell_by():
    with pytest.raises(ValueError, match="one block, and no redrawn images"):
        errors_of(spread_of(np.array([[0.3], [0.4]])), seed=0)


def test_without_images_the_blocks_alone_count():
    scores, _ = study(np.random.default_rng(6), [0.3, 0.4], seed_sd=0.01)
    spread = spread_of(scores)
    assert (spread.covers_images, spread.covers_training) == (False, True)
    low, high = compared(scores).behind[0].low, compared(scores).behind[0].high
    # A paired t-interval: five degrees of freedom, 2.57 standard errors.
    error = np.std(scores[1] - scores[0], ddof=1) / 6**0.5
    assert high - low == pytest.approx(2 * 2.57 * error, rel=0.1)


def test_a_replicate_with_nothing_to_find_is_left_out():
    scores, replicates = study(np.random.default_rng(7), [0.3, 0.4], image_sd=0.01)
    holed = np.concatenate([replicates, np.full((3, *scores.shape), np.nan)])
    assert str(compared(scores, holed)) == str(compared(scores, replicates))
    assert not spread_of(scores, np.full((3, *scores.shape), np.nan)).covers_images


def test_arms_that_detect_the_very_same_do_not_differ():
    scores, replicates = study(np.random.default_rng(8), [0.3, 0.4], seed_sd=0, image_sd=0.01, folds=np.array([0]))
    found = compared(scores[[0, 1, 1]], replicates[:, [0, 1, 1]])
    assert found.may_be_best == (False, True, True)
    assert (found.behind[2].low, found.behind[2].high) == (0, 0)


def test_one_arm_has_an_interval_and_is_the_best():
    scores, replicates = study(np.random.default_rng(9), [0.3], image_sd=0.01)
    found = compared(scores, replicates)
    assert found.may_be_best == (True,)
    assert found.means[0].low < scores.mean() < found.means[0].high


def test_differences_are_first_minus_second_and_hold_together():
    scores, replicates = study(np.random.default_rng(10), [0.2, 0.3, 0.25], seed_sd=0.004)
    errors = errors_of(spread_of(scores, replicates), seed=0)
    one, other = differences(scores.mean(1), errors, [(1, 0), (1, 2)])
    assert one.estimate == pytest.approx(scores[1].mean() - scores[0].mean())
    assert 0 < other.low < 0.05 < other.high
    (alone,) = differences(scores.mean(1), errors, [(1, 0)])
    assert alone.high - alone.low < one.high - one.low


def test_trials_that_share_no_blocks_are_compared_each_with_its_own_variance():
    rng = np.random.default_rng(11)
    wide, narrow = rng.normal(0.3, 0.05, 8), rng.normal(0.3, 0.005, 20)
    errors = errors_of_samples([wide, narrow, narrow + 0.2], seed=0)
    assert errors.pairs[0, 1] == pytest.approx((np.var(wide, ddof=1) / 8 + np.var(narrow, ddof=1) / 20) ** 0.5)
    found = compare(np.array([wide.mean(), narrow.mean(), narrow.mean() + 0.2]), errors)
    assert found.may_be_best == (False, False, True)
    # Student's t with seven degrees of freedom.
    assert found.means[0].high - wide.mean() == pytest.approx(2.36 * np.std(wide, ddof=1) / 8**0.5, rel=0.1)
    pair = errors_of_samples([wide, narrow], seed=0)
    assert compare(np.array([wide.mean(), narrow.mean()]), pair).may_be_best == (True, True)


@pytest.mark.parametrize(
    ("table", "arms", "blocks"),
    [
        (["xx", "xx"], [0, 1], [0, 1]),
        (["xxx", "xx.", "xx."], [0, 1, 2], [0, 1]),
        (["xxx", "xxx", "x.."], [0, 1], [0, 1, 2]),  # an arm that failed
        (["xx", "x.", "xx", "..", "x."], [0, 1, 2, 4], [0]),
        (["x.", "x."], [0, 1], [0]),
        (["xx", "x.", "xx", "x."], [0, 1, 2, 3], [0]),  # as many cells: with more arms
        (["..", ".."], [], []),
        ([], [], []),
    ],
)
def test_the_largest_whole_table_is_found(table, arms, blocks):
    is_there = np.array([[cell == "x" for cell in row] for row in table], bool).reshape(
        len(table), len(table[0]) if table else 0
    )
    found = whole_blocks(is_there)
    assert (found[0].tolist(), found[1].tolist()) == (arms, blocks)


def test_more_seeds_are_needed_for_smaller_differences_and_images_cannot_be_made_up_for():
    spread = spread_of(*study(np.random.default_rng(12), [0.3, 0.3, 0.3], seed_sd=0.01, image_sd=0.002))

    def needed(difference):
        return more_seeds(spread, [0, 1, 2], difference=difference, folds=3, most=200, seed=0)

    assert needed(1.0) == 0
    few, many = needed(0.02), needed(0.012)
    assert few is not None
    assert many is not None
    assert 0 <= few < many < 200
    assert needed(0.002) is None


def test_so_many_seeds_would_tell_the_difference():
    """The number is the one at which the error of a difference, times its bound and power, fits into it."""
    spread = spread_of(study(np.random.default_rng(13), [0.3, 0.3], seed_sd=0.01)[0])
    seeds = more_seeds(spread, [0, 1], difference=0.01, folds=3, most=500, seed=0)
    assert seeds is not None
    blocks = 6 + 3 * seeds
    # (1.96 + 0.84)^2 * 2 * variance / difference^2: the usual number of pairs.
    assert blocks == pytest.approx(2.8**2 * 2 * spread.of_training / 0.01**2, rel=0.2, abs=5)


def test_replicates_are_of_the_findings_and_paired():
    detections, truths = random_images(0, num_images=10)
    matches = match(detections, truths)
    score, values = replicates_of(matches, seed=1, replicates=50, family="yolox")
    assert score == evaluate(detections, truths).map_40_findings
    assert values.shape == (50,)
    assert np.std(values) > 0
    np.testing.assert_array_equal(replicates_of(matches, seed=1, replicates=50, family="yolox")[1], values)
    assert not np.array_equal(replicates_of(matches, seed=2, replicates=50, family="yolox")[1], values)


def test_the_bound_covers_all_arms_at_once():
    draws = np.random.default_rng(14).normal(size=(20_000, 6))
    pairs = np.full((6, 6), 2**0.5) * (1 - np.eye(6))
    found = compare(np.arange(6.0), Errors(draws, pairs))
    reach = (found.behind[0].high - found.behind[0].estimate) / 2**0.5
    assert reach == pytest.approx(2.57, abs=0.06)  # Dunnett's bound for five comparisons, two-sided; one alone has 1.96
