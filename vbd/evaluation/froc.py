"""Free-response operating characteristic: how many findings are found at so many false boxes per image.

Chakraborty, "Maximum likelihood analysis of free-response receiver operating characteristic (FROC) data", 1989. Boxes
are matched as in `average_precision`: a second box on a found finding is false.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vbd.evaluation.intervals import Interval, percentile_interval, weights_of_replicates
from vbd.evaluation.matching import Matches, match
from vbd.labels import CLASS_NAMES, NUM_FINDINGS
from vbd.records import Detections, Truth

RATES: tuple[float, ...] = (1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8)


@dataclass(frozen=True)
class FrocCurve:
    """Operating points at fixed false positives per image; NaN sensitivities where there is nothing to be found."""

    false_positives_per_image: tuple[float, ...]  # what was asked for: upper bounds
    sensitivities: tuple[float, ...]
    # Keep boxes with at least this score; NaN where already the best boxes exceed the rate, so that none may be kept.
    score_thresholds: tuple[float, ...]
    num_truths: int
    # The whole curve, for plots: one point for each distinct score, descending; keep boxes with at least that score.
    curve_scores: NDArray[np.float64] = field(compare=False, repr=False)  # (k,)
    curve_false_positives_per_image: NDArray[np.float64] = field(compare=False, repr=False)  # (k,), rising
    curve_sensitivities: NDArray[np.float64] = field(compare=False, repr=False)  # (k,), rising

    @property
    def mean_sensitivity(self) -> float:
        """Mean over the rates, the score of the LUNA16 challenge."""
        return float(np.mean(self.sensitivities))


@dataclass(frozen=True)
class Froc:
    """All findings with one threshold for all classes, and each class by itself."""

    pooled: FrocCurve
    per_class: dict[str, FrocCurve]
    num_images: int


def froc(
    detections: Sequence[Detections],
    truths: Sequence[Truth],
    *,
    rates: Sequence[float] = RATES,
    iou_threshold: float = 0.4,
) -> Froc:
    """Sensitivity at each rate of false positives per image, over all images; errors as in `evaluate`."""
    return froc_of(match(detections, truths, iou_threshold=iou_threshold), rates=rates)


def froc_of(matches: Matches, *, rates: Sequence[float] = RATES) -> Froc:
    """`froc` of what is matched already."""
    positives, num_images = matches.num_truths.sum(1), matches.num_truths.shape[1]
    per_class = {}
    for label, name in enumerate(CLASS_NAMES):
        rows = slice(matches.starts[label], matches.starts[label + 1])
        scores, hits = matches.scores[rows], matches.is_true_positive[rows]
        per_class[name] = _curve(scores, hits, int(positives[label]), num_images, rates)
    order = _pooled(matches)
    scores, hits = matches.scores[order], matches.is_true_positive[order]
    pooled = _curve(scores, hits, int(positives[:NUM_FINDINGS].sum()), num_images, rates)
    return Froc(pooled, per_class, num_images)


def froc_intervals(
    matches: Matches, *, seed: int, replicates: int = 1_000, level: float = 0.95, rates: Sequence[float] = RATES
) -> tuple[Interval, ...]:
    """Bootstrap percentile intervals, over images, of the pooled sensitivity at each rate.

    A replicate reads its own curve at the rate, so that the threshold moves with the images drawn. Equal seeds draw the
    images that `intervals.bootstrap` draws.
    """
    pooled = froc_of(matches, rates=rates).pooled
    order = _pooled(matches)
    scores, hits, images = matches.scores[order], matches.is_true_positive[order], matches.images[order]
    is_last = _is_last_of_score(scores)
    per_image = matches.num_truths[:NUM_FINDINGS].sum(0)
    values = []
    for weights in weights_of_replicates(matches.num_truths.shape[1], seed=seed, replicates=replicates):
        of_box = weights[images]
        found = np.cumsum(np.where(hits, of_box, 0))[is_last]
        false = np.cumsum(np.where(hits, 0, of_box))[is_last]
        allowed = np.searchsorted(false, np.array(rates) * weights.sum(), side="right")
        positives = weights @ per_image
        values.append(np.append(0, found)[allowed] / positives if positives else np.full(len(rates), np.nan))
    table = np.array(values).reshape(-1, len(rates))
    return tuple(percentile_interval(pooled.sensitivities[k], table[:, k], level) for k in range(len(rates)))


def _pooled(matches: Matches) -> NDArray[np.int64]:
    """The findings' rows by descending score, whatever their class."""
    return np.argsort(-matches.scores[: matches.starts[NUM_FINDINGS]], kind="stable")


def _is_last_of_score(scores: NDArray) -> NDArray[np.bool_]:
    return np.append(np.diff(scores) < 0, np.ones(min(len(scores), 1), np.bool_))


def _curve(
    scores: NDArray, hits: NDArray[np.bool_], positives: int, num_images: int, rates: Sequence[float]
) -> FrocCurve:
    """Operating points of boxes in descending score; a threshold keeps all boxes of equal score or none."""
    is_last = _is_last_of_score(scores)
    thresholds, found, false = scores[is_last], np.cumsum(hits)[is_last], np.cumsum(~hits)[is_last]
    sensitivities, chosen = [], []
    for rate in rates:
        allowed = int(np.searchsorted(false, rate * num_images, side="right"))
        reached = found[allowed - 1] if allowed else 0
        sensitivities.append(float(reached / positives) if positives else float("nan"))
        chosen.append(float(thresholds[allowed - 1]) if allowed else float("nan"))
    return FrocCurve(
        false_positives_per_image=tuple(rates),
        sensitivities=tuple(sensitivities),
        score_thresholds=tuple(chosen),
        num_truths=positives,
        curve_scores=thresholds,
        curve_false_positives_per_image=false / max(num_images, 1),
        curve_sensitivities=found / positives if positives else np.full(len(found), np.nan),
    )
