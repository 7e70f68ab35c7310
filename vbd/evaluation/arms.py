"""Arms of a comparison, such as kinds of augmentation, each trained in the same blocks: which of them may be the best.

A block is what arms share, a seed and a fold. Arms are compared within blocks, and on the same redrawn images, so that what
makes a block easy for all of them falls out. How much training varies by chance is estimated from what is left of the table
of arms by blocks without its row and column means. Few blocks tell that badly; so the variance is drawn anew for each replicate
from what it may be (chi-square), as in a t-interval. A bootstrap of two or three blocks would claim far too much.

Several arms are held against the best at once as by Hsu, "Multiple Comparisons", 1996 (comparisons with the best).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vbd.config import Family
from vbd.evaluation.average_precision import average_precisions
from vbd.evaluation.intervals import Interval, percentile_interval, replicate, with_means
from vbd.evaluation.matching import Matches
from vbd.evaluation.score import score_column

LEVEL = 0.95
_DRAWS = 4_000
_POWER = 0.84  # standard errors that a difference must lie above the bound, to be told four times in five


@dataclass(frozen=True)
class Spread:
    """By how much the means of arms may be off, and what of."""

    images: NDArray[np.float64]  # (n, arms) what redrawing the images changes; (0, arms) when they were not redrawn
    residual: float  # mean square that rows and columns of the table leave over; NaN with one block or one arm
    of_images: float  # that part of it which the images make
    blocks: int

    @property
    def covers_images(self) -> bool:
        """Whether the choice of images is counted."""
        return len(self.images) > 0

    @property
    def covers_training(self) -> bool:
        """Whether it is counted that training again, with another seed, gives other scores."""
        return not np.isnan(self.residual)

    @property
    def of_training(self) -> float:
        """The variance of a score by chance in training."""
        return max(0.0, self.residual - self.of_images) if self.covers_training else 0.0


@dataclass(frozen=True)
class Errors:
    """Chance errors of the means of arms, as draws."""

    draws: NDArray[np.float64]  # (draws, arms)
    pairs: NDArray[np.float64]  # (arms, arms) standard errors of differences


@dataclass(frozen=True)
class Comparison:
    """What can be told of the arms, in their order."""

    means: tuple[Interval, ...]  # each by itself, at 95 %
    behind: tuple[Interval, ...]  # the best mean minus each; at 95 % against all arms at once, whichever is the best
    best: int  # the arm of the best mean
    may_be_best: tuple[bool, ...]  # not shown to be worse than the best; wrongly alone: at most 1 in 20


def replicates_of(matches: Matches, *, seed: int, replicates: int, family: Family) -> tuple[float, NDArray[np.float64]]:
    """The score of what a family's model found, and that of redrawn images, (replicates,). Equal seeds draw equal images.

    Cells of one fold take one seed, so that arms and seeds of it see the same images; another fold takes another.
    """
    values = replicate(matches, seed=seed, replicates=replicates)
    scores = with_means(np.concatenate([average_precisions(matches)[None], values]))[:, score_column(family)]
    return float(scores[0]), scores[1:]


def whole_blocks(is_there: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The largest table without a gap: arms and blocks, as places in `is_there` (arms, blocks).

    Of tables that are equally large, that with more arms. An arm that failed everywhere costs itself, not the blocks.
    """
    counts = is_there.sum(1)
    nothing = np.zeros(0, np.int64), np.zeros(0, np.int64)
    found = [nothing]
    for least in sorted(set(counts.tolist()) - {0}):
        arms = np.flatnonzero(counts >= least)
        found.append((arms, np.flatnonzero(is_there[arms].all(0))))
    return max(found, key=lambda table: (len(table[0]) * len(table[1]), len(table[0])))


def spread_of(scores: NDArray[np.float64], replicates: NDArray[np.float64] | None = None) -> Spread:
    """What the errors of the arms' means come from: scores (arms, blocks), and those of redrawn images (n, arms, blocks).

    A replicate without a score, because nothing was to be found in it, is left out.
    """
    arms, blocks = scores.shape
    if replicates is None:
        replicates = np.zeros((0, arms, blocks))
    known = replicates[~np.isnan(replicates).any((1, 2))]
    # The mean of redrawn images lies a little off the score: only how they differ counts.
    off = known - known.mean(0) if len(known) else known
    has_residual = arms > 1 and blocks > 1
    return Spread(
        images=off.mean(2),
        residual=float(_mean_square(scores)) if has_residual else np.nan,
        of_images=float(_mean_square(off).mean()) if has_residual and len(off) else 0.0,
        blocks=blocks,
    )


def _mean_square(tables: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean square of what rows and columns leave over: (..., arms, blocks) -> (...)."""
    arms, blocks = tables.shape[-2:]
    rest = (
        tables - tables.mean(-1, keepdims=True) - tables.mean(-2, keepdims=True) + tables.mean((-2, -1), keepdims=True)
    )
    return (rest**2).sum((-2, -1)) / ((arms - 1) * (blocks - 1))


def errors_of(spread: Spread, *, seed: int) -> Errors:
    """Draws of the chance errors; raises ValueError when there is nothing to draw them from."""
    if not (spread.covers_images or spread.covers_training):
        raise ValueError("one block, and no redrawn images: nothing tells how far a mean may be off")
    rng = np.random.default_rng(seed)
    arms = spread.images.shape[1]
    images = spread.images if spread.covers_images else np.zeros((1, arms))
    draws = images[np.arange(_DRAWS) % len(images)]
    if spread.covers_training:
        freedom = (arms - 1) * (spread.blocks - 1)
        residual = spread.residual * freedom / rng.chisquare(freedom, _DRAWS)
        variance = np.maximum(0.0, residual - spread.of_images) / spread.blocks
        draws = draws + np.sqrt(variance)[:, None] * rng.normal(size=(_DRAWS, arms))
    of_images = np.var(images[:, :, None] - images[:, None, :], axis=0)
    return Errors(draws, np.sqrt(of_images + 2 * spread.of_training / spread.blocks * (1 - np.eye(arms))))


def errors_of_samples(samples: Sequence[NDArray[np.float64]], *, seed: int) -> Errors:
    """Chance errors of the means of arms that share no blocks, each with its own variance: scores of two or more trials."""
    rng = np.random.default_rng(seed)
    counts = np.array([len(sample) for sample in samples])
    variances = np.array([np.var(sample, ddof=1) for sample in samples]) / counts
    scale = (counts - 1) / rng.chisquare(counts - 1, (_DRAWS, len(samples)))
    draws = np.sqrt(variances * scale) * rng.normal(size=(_DRAWS, len(samples)))
    pairs = np.sqrt(variances[:, None] + variances[None]) * (1 - np.eye(len(samples)))
    return Errors(draws, pairs)


def compare(means: NDArray[np.float64], errors: Errors) -> Comparison:
    """Holds each arm against the best of the means (arms,)."""
    best = int(np.argmax(means))
    own = tuple(percentile_interval(mean, mean + errors.draws[:, i], LEVEL) for i, mean in enumerate(means.tolist()))
    behind = []
    for i, gap in enumerate((means[best] - means).tolist()):
        reach = float(_critical(errors, i) * errors.pairs[best, i])
        behind.append(Interval(gap, gap - reach, gap + reach))
    return Comparison(own, tuple(behind), best, tuple(i == best or gap.low <= 0 for i, gap in enumerate(behind)))


def _critical(errors: Errors, arm: int) -> float:
    """How many standard errors any other arm may seem to differ from this one by chance."""
    others = np.arange(len(errors.pairs)) != arm
    return _largest(errors.draws[:, others] - errors.draws[:, [arm]], errors.pairs[others, arm])


def _largest(draws: NDArray[np.float64], standard_errors: NDArray[np.float64]) -> float:
    """The bound on the largest of several differences (draws, n), in standard errors (n,), that 95 % of draws keep to."""
    if not len(standard_errors):
        return 0.0
    known = np.where(standard_errors > 0, standard_errors, np.inf)
    return float(np.quantile(np.abs(draws / known).max(1), LEVEL))


def differences(means: NDArray[np.float64], errors: Errors, pairs: Sequence[tuple[int, int]]) -> tuple[Interval, ...]:
    """First minus second of each pair of arms; at 95 % for all of the pairs at once."""
    first, second = (np.array(side, np.int64) for side in zip(*pairs, strict=True))
    standard_errors = errors.pairs[first, second]
    reach = _largest(errors.draws[:, first] - errors.draws[:, second], standard_errors) * standard_errors
    estimates = means[first] - means[second]
    return tuple(
        Interval(*map(float, each)) for each in zip(estimates, estimates - reach, estimates + reach, strict=True)
    )


def more_seeds(
    spread: Spread, arms: Sequence[int], *, difference: float, folds: int, most: int, seed: int
) -> int | None:
    """How many more seeds on each of the folds would tell such a difference between any two of the arms, four times in five.

    None when `most` would not do: images are the same for every seed, and what they leave open stays open. Raises ValueError
    when it is not known how training varies.
    """
    if not spread.covers_training:
        raise ValueError("with one block it is not known how training varies")

    def is_enough(seeds: int) -> bool:
        errors = errors_of(replace(spread, blocks=spread.blocks + seeds * folds), seed=seed)
        needed = [(_critical(errors, i) + _POWER) * errors.pairs[i, j] for i in arms for j in arms if i != j]
        return max(needed, default=0.0) <= difference

    if not is_enough(most):
        return None
    too_few, enough = -1, most
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        too_few, enough = (too_few, middle) if is_enough(middle) else (middle, enough)
    return enough
