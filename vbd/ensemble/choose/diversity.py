"""How unlike the members are: which findings each pair found, and whether they rank them alike.

Fusing gains where members err apart. Members are compared where each has equally many false boxes an image, so that neither a
model's scale of scores nor its number of boxes matters.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vbd.evaluation.matching import FlatBoxes, Matches, flatten, match_flat
from vbd.labels import NUM_FINDINGS
from vbd.records import Detections, Truth


@dataclass(frozen=True)
class Pair:
    """Two members on the same findings; shares of all findings, which sum to 1, NaN without any."""

    first: str
    second: str
    both: float
    first_only: float
    second_only: float
    neither: float
    score_correlation: float  # Spearman's, over findings that both found; NaN for fewer than three


@dataclass(frozen=True)
class Diversity:
    """Agreement of every pair of members."""

    pairs: tuple[Pair, ...]
    found: dict[str, float]  # share of the findings that each member found
    num_findings: int
    false_per_image: float

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, None for NaN."""
        values = dataclasses.asdict(self)
        for row in (*values["pairs"], values["found"]):
            row |= {name: None for name, value in row.items() if isinstance(value, float) and np.isnan(value)}
        return values


def diversity(
    members: Mapping[str, Sequence[Detections]],
    truths: Sequence[Truth],
    *,
    false_per_image: float = 1.0,
    iou_threshold: float = 0.4,
) -> Diversity:
    """Agreement of members, by name, on the findings of `truths`; errors as in `average_precision.evaluate`.

    Of a member count its boxes of the highest scores, of all labels, down to `false_per_image` false ones on average.
    """
    scores = {
        name: _scores_of_findings(found, truths, false_per_image=false_per_image, iou_threshold=iou_threshold)
        for name, found in members.items()
    }
    num_findings = sum(len(truth.labels) for truth in truths)
    share = {name: _share(~np.isnan(each)) for name, each in scores.items()}
    pairs = tuple(_pair(first, second, scores) for first, second in itertools.combinations(members, 2))
    return Diversity(pairs, share, num_findings, false_per_image)


def _pair(first: str, second: str, scores: Mapping[str, NDArray]) -> Pair:
    by_first, by_second = ~np.isnan(scores[first]), ~np.isnan(scores[second])
    both = by_first & by_second
    return Pair(
        first=first,
        second=second,
        both=_share(both),
        first_only=_share(by_first & ~by_second),
        second_only=_share(by_second & ~by_first),
        neither=_share(~by_first & ~by_second),
        score_correlation=_spearman(scores[first][both], scores[second][both]),
    )


def _share(chosen: NDArray[np.bool_]) -> float:
    return float(chosen.mean()) if len(chosen) else float("nan")


def _scores_of_findings(
    detections: Sequence[Detections], truths: Sequence[Truth], *, false_per_image: float, iou_threshold: float
) -> NDArray[np.float64]:
    """The score by which each finding was found, NaN where it was not: -> (findings,) in the order of `truths`."""
    found, wanted = flatten([dataclasses.replace(d, no_finding=None) for d in detections], truths)
    rows = np.flatnonzero(wanted.labels < NUM_FINDINGS)
    wanted = FlatBoxes(wanted.images[rows], wanted.labels[rows], wanted.boxes[rows], wanted.scores[rows])
    matches = match_flat(found, wanted, len(truths), iou_threshold=iou_threshold)
    counted = matches.rows[matches.is_true_positive & (matches.scores > _cut(matches, false_per_image * len(truths)))]
    scores = np.full(len(rows), np.nan)
    scores[_truths_of(counted, found, wanted, len(truths))] = found.scores[counted]
    return scores


def _cut(matches: Matches, most_false: float) -> float:
    """The score above which at most so many detections are false."""
    false = np.sort(matches.scores[~matches.is_true_positive])[::-1]
    return float(false[int(most_false)]) if len(false) > most_false else -np.inf


def _truths_of(rows: NDArray[np.int64], found: FlatBoxes, wanted: FlatBoxes, num_images: int) -> NDArray[np.int64]:
    """The truth that each true positive overlaps most, the earlier of equals: (n,) -> (n,)."""
    keys = wanted.labels * num_images + wanted.images
    order = np.argsort(keys, kind="stable")
    own = found.labels[rows] * num_images + found.images[rows]
    first = np.searchsorted(keys[order], own, side="left")
    counts = np.searchsorted(keys[order], own, side="right") - first
    # Every true positive beside every truth of its image and label.
    detection = np.repeat(np.arange(len(rows)), counts)
    place = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + first[detection]
    truth = order[place]
    overlap = _iou(found.boxes[rows[detection]], wanted.boxes[truth])
    best = np.lexsort((truth, -overlap, detection))
    is_first = np.append(True, np.diff(detection[best]) > 0)[: len(best)]
    return truth[best[is_first]]


def _iou(first: NDArray, second: NDArray) -> NDArray[np.float64]:
    """IoU row by row: (n, 4), (n, 4) -> (n,)."""
    sides = np.minimum(first[:, 2:], second[:, 2:]) - np.maximum(first[:, :2], second[:, :2])
    shared = np.maximum(sides, 0).prod(1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (first, second)]
    return shared / (areas[0] + areas[1] - shared)


def _spearman(first: NDArray, second: NDArray) -> float:
    if len(first) < 3:
        return float("nan")
    ranks = np.stack([_ranks(first), _ranks(second)])
    spread = ranks.std(1)
    if not spread.all():
        return float("nan")
    return float(((ranks[0] - ranks[0].mean()) * (ranks[1] - ranks[1].mean())).mean() / spread.prod())


def _ranks(values: NDArray) -> NDArray[np.float64]:
    """Ranks from 0, equal values sharing their mean."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[group]
