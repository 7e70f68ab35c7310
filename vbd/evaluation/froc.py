"""Free-response operating characteristic: how many findings are found at so many false boxes per image.

Chakraborty, "Maximum likelihood analysis of free-response receiver operating characteristic (FROC) data", 1989. Boxes
are matched as in `average_precision`: a second box on a found finding is false.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vbd.evaluation.average_precision import match
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
    matches = match(detections, truths, iou_threshold=iou_threshold)
    positives = matches.num_truths.sum(1)
    per_class = {}
    for label, name in enumerate(CLASS_NAMES):
        rows = slice(matches.starts[label], matches.starts[label + 1])
        per_class[name] = _curve(
            matches.scores[rows], matches.is_true_positive[rows], int(positives[label]), len(truths), rates
        )
    end = matches.starts[NUM_FINDINGS]
    order = np.argsort(-matches.scores[:end], kind="stable")
    scores, hits = matches.scores[:end][order], matches.is_true_positive[:end][order]
    pooled = _curve(scores, hits, int(positives[:NUM_FINDINGS].sum()), len(truths), rates)
    return Froc(pooled, per_class, len(truths))


def _curve(
    scores: NDArray, hits: NDArray[np.bool_], positives: int, num_images: int, rates: Sequence[float]
) -> FrocCurve:
    """Operating points of boxes in descending score; a threshold keeps all boxes of equal score or none."""
    is_last_of_score = np.append(np.diff(scores) < 0, np.ones(min(len(scores), 1), bool))
    thresholds = scores[is_last_of_score]
    found, false = np.cumsum(hits)[is_last_of_score], np.cumsum(~hits)[is_last_of_score]
    sensitivities, chosen = [], []
    for rate in rates:
        allowed = int(np.searchsorted(false, rate * num_images, side="right"))
        reached = found[allowed - 1] if allowed else 0
        sensitivities.append(float(reached / positives) if positives else float("nan"))
        chosen.append(float(thresholds[allowed - 1]) if allowed else float("nan"))
    return FrocCurve(tuple(rates), tuple(sensitivities), tuple(chosen), positives)
