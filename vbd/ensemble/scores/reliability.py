"""Do scores keep their word? Reliability diagrams of detections, and the expected calibration error with its interval.

Guo, Pleiss, Sun and Weinberger, "On calibration of modern neural networks", 2017. Call it with raw and with calibrated
detections to see what calibration has done.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vbd.ensemble.scores.curves import Losses, losses_of
from vbd.evaluation.intervals import Interval, percentile_interval, weights_of_replicates
from vbd.evaluation.matching import Matches, match
from vbd.labels import NO_FINDING
from vbd.records import Detections, Truth


@dataclass(frozen=True)
class Reliability:
    """Detections by score, in bins of equal width; means are NaN in an empty bin, errors and losses without detections."""

    edges: tuple[float, ...]  # (bins + 1,) from 0 to 1
    counts: tuple[int, ...]  # (bins,) detections
    mean_scores: tuple[float, ...]  # (bins,)
    hit_shares: tuple[float, ...]  # (bins,) true positives among them
    error: Interval  # expected calibration error: |mean score - share of hits|, weighted by counts
    log_loss: float
    brier: float

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, None for NaN."""
        values = dataclasses.asdict(self)
        for name in ("mean_scores", "hit_shares"):
            values[name] = [None if np.isnan(value) else value for value in values[name]]
        return values


def reliability(
    detections: Sequence[Detections],
    truths: Sequence[Truth],
    *,
    seed: int,
    label: int | None = None,
    bins: int = 15,
    iou_threshold: float = 0.4,
    replicates: int = 1_000,
    level: float = 0.95,
) -> Reliability:
    """Scores against shares of true positives at IoU > `iou_threshold`, of all findings or of one label.

    The interval is the basic bootstrap's over images: a replicate has more scatter than the images themselves, which the error
    counts as miscalibration, so that the percentiles would lie too high. Errors as in `average_precision.evaluate`.
    """
    matches = match([dataclasses.replace(d, no_finding=None) for d in detections], truths, iou_threshold=iou_threshold)
    rows = _rows(matches, label)
    scores, hits = matches.scores[rows], matches.is_true_positive[rows]
    sums = _sums(scores, hits, matches.images[rows], len(truths), bins)
    counts, score_sums, hit_sums = sums.sum(0)
    with np.errstate(invalid="ignore"):
        mean_scores, hit_shares = score_sums / counts, hit_sums / counts
    drawn = list(weights_of_replicates(len(truths), seed=seed, replicates=replicates))
    weights = np.array(drawn, np.float64).reshape(len(drawn), len(truths))
    losses = losses_of(scores, hits) if len(scores) else Losses(float("nan"), float("nan"))
    return Reliability(
        edges=tuple(np.linspace(0, 1, bins + 1).tolist()),
        counts=tuple(counts.astype(int).tolist()),
        mean_scores=tuple(mean_scores.tolist()),
        hit_shares=tuple(hit_shares.tolist()),
        error=_basic_interval(float(_errors(sums.sum(0))), _errors(np.tensordot(weights, sums, axes=1)), level),
        log_loss=losses.log_loss,
        brier=losses.brier,
    )


def _rows(matches: Matches, label: int | None) -> slice:
    first, last = (0, NO_FINDING) if label is None else (label, label + 1)
    return slice(matches.starts[first], matches.starts[last])


def _sums(scores: NDArray, hits: NDArray, images: NDArray, num_images: int, bins: int) -> NDArray[np.float64]:
    """Number, scores and hits of each image's detections by bin: -> (images, 3, bins)."""
    place = images * bins + np.minimum((scores * bins).astype(np.int64), bins - 1)
    columns = [np.bincount(place, weights, num_images * bins) for weights in (None, scores, hits)]
    return np.stack([column.reshape(num_images, bins) for column in columns], axis=1).astype(np.float64)


def _errors(sums: NDArray) -> NDArray[np.float64]:
    """Expected calibration error: (..., 3, bins) -> (...); NaN without detections."""
    counts, scores, hits = np.moveaxis(sums, -2, 0)
    total = counts.sum(-1)
    return np.divide(np.abs(scores - hits).sum(-1), total, out=np.full(total.shape, np.nan), where=total > 0)


def _basic_interval(estimate: float, values: NDArray, level: float) -> Interval:
    """The percentile interval mirrored at the estimate, within 0..1."""
    mirrored = percentile_interval(estimate, 2 * estimate - values, level)
    return Interval(estimate, *(float(np.clip(end, 0, 1)) for end in (mirrored.low, mirrored.high)))
