"""How far a score can be trusted: bootstrap percentile intervals over images, and paired differences.

Efron and Tibshirani, "An Introduction to the Bootstrap", 1993. Images are drawn with replacement; the matching is done
once, and a replicate only weighs the images.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vbd.evaluation.average_precision import average_precisions, mean_over_known
from vbd.evaluation.matching import CLASSES, Matches, match
from vbd.labels import NUM_FINDINGS
from vbd.records import Detections, Truth

# Replicates weighed at a time: keeps the table of weights small for thousands of images.
_CHUNK = 100


@dataclass(frozen=True)
class Interval:
    """An estimate on all images, and the percentile interval of its replicates; NaN where there is no ground truth."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class Intervals:
    """Intervals of a score, or of a difference of scores."""

    map_40: Interval
    map_40_findings: Interval
    per_class: dict[str, Interval]
    replicates: int
    level: float


def bootstrap(
    detections: Sequence[Detections],
    truths: Sequence[Truth],
    *,
    seed: int,
    replicates: int = 1_000,
    level: float = 0.95,
    iou_threshold: float = 0.4,
) -> Intervals:
    """Intervals of the competition's metric over images; arguments and errors as in `average_precision.evaluate`."""
    matches = match(detections, truths, iou_threshold=iou_threshold)
    return bootstrap_of(matches, seed=seed, replicates=replicates, level=level)


def bootstrap_of(matches: Matches, *, seed: int, replicates: int = 1_000, level: float = 0.95) -> Intervals:
    """`bootstrap` of what is matched already, on all or on a part of the ground truth."""
    values = replicate(matches, seed=seed, replicates=replicates)
    return _named(with_means(average_precisions(matches)[None]), with_means(values), level)


def paired_difference(
    first: Sequence[Detections],
    second: Sequence[Detections],
    truths: Sequence[Truth],
    *,
    seed: int,
    replicates: int = 1_000,
    level: float = 0.95,
    iou_threshold: float = 0.4,
) -> Intervals:
    """Intervals of first minus second, both weighed on the same replicates of the same images."""
    matches = [match(detections, truths, iou_threshold=iou_threshold) for detections in (first, second)]
    return paired_difference_of(*matches, seed=seed, replicates=replicates, level=level)


def paired_difference_of(
    first: Matches, second: Matches, *, seed: int, replicates: int = 1_000, level: float = 0.95
) -> Intervals:
    """`paired_difference` of what is matched already, both with the same ground truth in the same order."""
    estimates = [with_means(average_precisions(each)[None]) for each in (first, second)]
    values = [with_means(replicate(each, seed=seed, replicates=replicates)) for each in (first, second)]
    return _named(estimates[0] - estimates[1], values[0] - values[1], level)


def replicate(matches: Matches, *, seed: int, replicates: int) -> NDArray[np.float64]:
    """AP of each class in each replicate: -> (replicates, 15). Equal seeds draw equal images."""
    num_images = matches.num_truths.shape[1]
    values = np.full((replicates, len(CLASSES)), np.nan)
    weights = weights_of_replicates(num_images, seed=seed, replicates=replicates)
    start = 0
    while chunk := list(itertools.islice(weights, _CHUNK)):
        values[start : start + len(chunk)] = average_precisions(matches, np.stack(chunk))
        start += len(chunk)
    return values


def weights_of_replicates(num_images: int, *, seed: int, replicates: int) -> Iterator[NDArray[np.int64]]:
    """How often each image is in each replicate: (images,) at a time; none without images."""
    rng = np.random.default_rng(seed)
    for start in range(0, replicates if num_images else 0, _CHUNK):
        drawn = rng.integers(0, num_images, (min(_CHUNK, replicates - start), num_images))
        for row in drawn:
            yield np.bincount(row, minlength=num_images)


def with_means(values: NDArray) -> NDArray[np.float64]:
    """APs (n, 15) with `map_40` and `map_40_findings` in front: -> (n, 17)."""
    means = [[mean_over_known(row), mean_over_known(row[:NUM_FINDINGS])] for row in values]
    return np.concatenate([np.array(means).reshape(-1, 2), values], axis=1)


def percentile_interval(estimate: float, values: NDArray, level: float) -> Interval:
    """The interval that holds the middle `level` of the replicates' values (n,)."""
    known = values[~np.isnan(values)]
    if not len(known) or np.isnan(estimate):
        return Interval(float(estimate), float("nan"), float("nan"))
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(estimate), float(low), float(high))


def _named(estimate: NDArray, values: NDArray, level: float) -> Intervals:
    """From estimates (1, 17) and replicates (n, 17)."""
    all_intervals = [percentile_interval(estimate[0, k], values[:, k], level) for k in range(estimate.shape[1])]
    return Intervals(
        map_40=all_intervals[0],
        map_40_findings=all_intervals[1],
        per_class=dict(zip(CLASSES, all_intervals[2:], strict=True)),
        replicates=len(values),
        level=level,
    )
