"""All numbers of a report on predictions, computed once for its table, its JSON and its page."""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import numpy as np

from vbd.data.prepared import PreparedDataset
from vbd.errors import InputError
from vbd.evaluation.average_precision import Scores, evaluate
from vbd.evaluation.coco_metric import CocoScores, coco_scores
from vbd.evaluation.confusion import Confusion, confusion
from vbd.evaluation.curves import PrecisionRecall, precision_recall_curves
from vbd.evaluation.froc import Froc, FrocCurve, froc_intervals, froc_of
from vbd.evaluation.intervals import Interval, Intervals, bootstrap_of, paired_difference_of
from vbd.evaluation.matching import Matches, match
from vbd.evaluation.subsets import LEVELS, Size, by_agreement, by_size, match_by_agreement
from vbd.labels import NO_FINDING_NAME
from vbd.records import Truth
from vbd.reports.scores.human import Human, read_human
from vbd.reports.scores.read import Chosen

IOU_THRESHOLD = 0.4
LEVEL = 0.95
# Headlines in the order of the report, with what they are.
HEADLINES = {
    "map_40": 'the competition\'s: 15 classes with "No finding", IoU > 0.4',
    "map_40_findings": "the 14 findings",
    "map_coco_101": "the 14 findings, COCO's 101 recall points",
}
COCO_HEADLINES = {
    "coco_ap": "COCO's AP: the 14 findings, mean over IoU 0.50 to 0.95",
    "coco_ap50": "COCO's AP50: at IoU 0.50",
    "coco_ap75": "COCO's AP75: at IoU 0.75",
}
RANKED_BY = "map_40_findings"  # as everywhere in vbd: what a detector is trained for
_SEED = 0  # of the bootstrap: equal files get equal intervals
_DEFAULT_RATE = 1.0  # false boxes per image at the score threshold that nobody named
_NO_THRESHOLD = 0.5

Verdict = Literal["better", "worse", "cannot tell"]
Spans = dict[str, tuple[float, float]]  # low and high by the name of a score


@dataclass(frozen=True)
class Member:
    """One of several sets of predictions in a folder, in short."""

    name: str
    files: tuple[str, ...]
    where: str
    images: int
    scores: Scores
    intervals: Spans


@dataclass(frozen=True)
class Comparison:
    """Predictions against others on the same images."""

    other: str
    scores: Scores  # of the others
    difference: Intervals  # ours minus theirs


@dataclass(frozen=True)
class Measures:
    """What was measured on one set of predictions."""

    chosen: Chosen
    scores: Scores
    intervals: Spans  # of map_40, map_40_findings and each class; empty without replicates
    coco: CocoScores
    by_agreement: dict[int, Scores]  # on findings of at least so many readers; empty where all are alike
    agreement_intervals: dict[int, tuple[float, float]]  # of map_40_findings
    by_size: dict[Size, Scores]  # empty where an image's size is not known
    curves: dict[str, PrecisionRecall]
    froc: Froc
    froc_intervals: tuple[Interval, ...]  # of the pooled sensitivities; empty without replicates
    score_threshold: float  # of the confusion matrix and of the pictures
    threshold_reason: str  # how it was chosen, in words
    confusion: Confusion
    human: Human | None  # None where no two readers of an image are known

    @property
    def headlines(self) -> dict[str, float]:
        """The main scores by name."""
        own = {name: float(getattr(self.scores, name)) for name in HEADLINES}
        return own | {"coco_ap": self.coco.ap, "coco_ap50": self.coco.ap50, "coco_ap75": self.coco.ap75}

    @property
    def subsets(self) -> dict[str, tuple[Scores, tuple[float, float]]]:
        """Scores on findings of some agreement or size, in words, with the interval of map_40_findings."""
        unknown = (math.nan, math.nan)
        found = {
            _level_in_words(level, self.by_agreement): (scores, self.agreement_intervals.get(level, unknown))
            for level, scores in self.by_agreement.items()
        }
        found |= {f"{size} size": (scores, unknown) for size, scores in self.by_size.items()}
        return {name: pair for name, pair in found.items() if findings_of(pair[0])}


@dataclass(frozen=True)
class Report:
    """What is told about a file of predictions."""

    predictions: str
    dataset: PreparedDataset
    where: str  # the part, in words
    is_submission: bool = False
    defects: tuple[str, ...] = ()
    measures: Measures | None = None
    why_not: str = ""  # why nothing was measured
    members: tuple[Member, ...] = ()
    empty: tuple[str, ...] = ()  # sets of predictions that find nothing in all images
    comparison: Comparison | None = None
    replicates: int = 0


def measure(chosen: Chosen, dataset: PreparedDataset, *, replicates: int, score_threshold: float | None) -> Measures:
    """Everything that one set of predictions is measured by."""
    detections, truths = chosen.detections, chosen.truths
    matches = _matched(chosen)
    curve = froc_of(matches)
    threshold, reason = _threshold(curve.pooled) if score_threshold is None else (score_threshold, "as was asked for")
    levels = _levels(truths)
    return Measures(
        chosen=chosen,
        scores=evaluate(detections, truths, iou_threshold=IOU_THRESHOLD),
        intervals=_intervals(matches, replicates),
        coco=coco_scores(detections, truths),
        by_agreement=by_agreement(detections, truths, levels=levels, iou_threshold=IOU_THRESHOLD) if levels else {},
        agreement_intervals=_agreement_intervals(chosen, levels, replicates),
        by_size=by_size(detections, truths, iou_threshold=IOU_THRESHOLD) if _has_sizes(truths) else {},
        curves=precision_recall_curves(matches),
        froc=curve,
        froc_intervals=froc_intervals(matches, seed=_SEED, replicates=replicates, level=LEVEL) if replicates else (),
        score_threshold=threshold,
        threshold_reason=reason,
        confusion=confusion(detections, truths, score_threshold=threshold, iou_threshold=IOU_THRESHOLD),
        human=read_human(chosen, dataset, iou_threshold=IOU_THRESHOLD),
    )


def measure_member(chosen: Chosen, *, replicates: int) -> Member:
    """The headlines of one of several sets of predictions."""
    matches = _matched(chosen)
    return Member(
        name=chosen.source.member,
        files=chosen.source.files,
        where=chosen.where,
        images=len(chosen.detections),
        scores=evaluate(chosen.detections, chosen.truths, iou_threshold=IOU_THRESHOLD),
        intervals=_intervals(matches, replicates),
    )


def compare(chosen: Chosen, other: Chosen, *, replicates: int) -> Comparison:
    """The difference to other predictions, weighed on the same replicates of the same images."""
    difference = paired_difference_of(_matched(chosen), _matched(other), seed=_SEED, replicates=replicates, level=LEVEL)
    return Comparison(other.source.name, evaluate(other.detections, other.truths), difference)


def verdict(difference: Interval) -> Verdict:
    """What a difference says: nothing as long as its interval holds 0, or where there is no interval."""
    if difference.low > 0:
        return "better"
    return "worse" if difference.high < 0 else "cannot tell"


def named_differences(comparison: Comparison) -> dict[str, Interval]:
    """The differences of the headlines, and of the classes that have something to be found."""
    difference = comparison.difference
    named = {"map_40": difference.map_40, "map_40_findings": difference.map_40_findings} | difference.per_class
    return {name: item for name, item in named.items() if not math.isnan(item.estimate)}


def rank(scores: Scores) -> float:
    """What several sets of predictions are ordered by; last where it is not known."""
    value = float(getattr(scores, RANKED_BY))
    return -math.inf if math.isnan(value) else value


def findings_of(scores: Scores) -> int:
    """How many findings were to be found."""
    return sum(count for name, count in scores.num_truths.items() if name != NO_FINDING_NAME)


def _matched(chosen: Chosen) -> Matches:
    """Which boxes are true; a fault of theirs is told with the file that holds it."""
    try:
        return match(chosen.detections, chosen.truths, iou_threshold=IOU_THRESHOLD)
    except InputError as error:
        raise InputError(f"{chosen.source.name}: {error}") from None


def _intervals(matches: Matches, replicates: int) -> Spans:
    """Bootstrap intervals over images, of the headlines and of each class; NaN for a class without truth."""
    if replicates == 0:
        return {}
    found = bootstrap_of(matches, seed=_SEED, replicates=replicates, level=LEVEL)
    named = {"map_40": found.map_40, "map_40_findings": found.map_40_findings} | found.per_class
    return {name: (interval.low, interval.high) for name, interval in named.items()}


def _levels(truths: list[Truth]) -> list[int]:
    """Levels of agreement that differ on these findings; none where all were drawn by as many readers."""
    if any(len(truth.readers) != len(truth.labels) for truth in truths):
        return []
    drawn = np.unique(np.concatenate([np.zeros(0, np.int64), *(truth.readers for truth in truths)]))
    if len(drawn) < 2:
        return []
    return sorted({max(level, int(drawn[0]), 1) for level in LEVELS if level <= drawn[-1]})


def _agreement_intervals(chosen: Chosen, levels: list[int], replicates: int) -> dict[int, tuple[float, float]]:
    intervals = {}
    for level in levels if replicates else ():
        matches = match_by_agreement(chosen.detections, chosen.truths, level=level, iou_threshold=IOU_THRESHOLD)
        found = bootstrap_of(matches, seed=_SEED, replicates=replicates, level=LEVEL).map_40_findings
        intervals[level] = (found.low, found.high)
    return intervals


def _level_in_words(level: int, levels: Collection[int]) -> str:
    if level == 1:
        return "any reader"
    return f"{level} readers" if level == max(levels) else f"{level} or more readers"


def _has_sizes(truths: list[Truth]) -> bool:
    return all(min(truth.original_hw) > 0 for truth in truths)


def _threshold(curve: FrocCurve) -> tuple[float, str]:
    """The score above which there is one false box per image, or about as many as there can be."""
    points = zip(curve.false_positives_per_image, curve.score_thresholds, strict=True)
    known = [(rate, score) for rate, score in points if not math.isnan(score)]
    if not known:
        return _NO_THRESHOLD, "as there is no box to choose it by"
    rate, score = min(known, key=lambda point: abs(point[0] - _DEFAULT_RATE))
    return score, f"where there is at most {rate:g} false box{'' if rate == 1 else 'es'} per image"
