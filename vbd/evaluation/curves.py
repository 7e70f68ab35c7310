"""Precision against recall, class by class: the curve under which the average precision is the area."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vbd.evaluation.average_precision import precision_recall
from vbd.evaluation.matching import CLASSES, Matches


@dataclass(frozen=True)
class PrecisionRecall:
    """A point after each detection, by descending score; NaN recall and precision of a class without ground truth.

    The area under `envelope` over `recall`, from recall 0, is the all-point average precision.
    """

    recall: NDArray[np.float64]  # (n,)
    precision: NDArray[np.float64]  # (n,) as it is
    envelope: NDArray[np.float64]  # (n,) the highest precision at this recall or above
    scores: NDArray[np.float64]  # (n,) of the detection; keep boxes with at least this score to stand here
    num_truths: int


def precision_recall_curves(matches: Matches) -> dict[str, PrecisionRecall]:
    """The curve of each of the 15 classes, by name."""
    curves = {}
    for label, (name, positives) in enumerate(zip(CLASSES, matches.num_truths.sum(1).tolist(), strict=True)):
        rows = slice(matches.starts[label], matches.starts[label + 1])
        scores = matches.scores[rows]
        if positives:
            recall, precision = precision_recall(matches.is_true_positive[rows], positives)
        else:
            recall = precision = np.full(len(scores), np.nan)
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        curves[name] = PrecisionRecall(recall, precision, envelope, scores, positives)
    return curves
