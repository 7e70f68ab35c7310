"""The one number that a run is judged by: `score` in its reports."""

from collections.abc import Iterable

from vbd.config import Family, finds_boxes
from vbd.evaluation.average_precision import Scores
from vbd.evaluation.intervals import Interval, Intervals
from vbd.labels import NO_FINDING, NO_FINDING_NAME

# Its key in a report of a run.
SCORE = "score"
_OF_DETECTORS, _OF_CLASSIFIERS = "map_40_findings", "ap_no_finding"


def score_name(families: Iterable[str]) -> str:
    """What the score of runs is: `map_40_findings` of detectors, the average precision of "No finding" of classifiers."""
    names = {_OF_DETECTORS if finds_boxes(family) else _OF_CLASSIFIERS for family in families}
    return names.pop() if len(names) == 1 else SCORE


def score_of(family: Family, scores: Scores) -> float:
    """The score of what a model of a family found; NaN where there is nothing to be found."""
    return scores.map_40_findings if finds_boxes(family) else scores.per_class[NO_FINDING_NAME]


def interval_of(family: Family, found: Intervals) -> Interval:
    """The interval of the score."""
    return found.map_40_findings if finds_boxes(family) else found.per_class[NO_FINDING_NAME]


def score_column(family: Family) -> int:
    """The score's place in what `intervals.with_means` gives."""
    return 1 if finds_boxes(family) else 2 + NO_FINDING


def numbers_of(family: Family, scores: Scores) -> dict[str, float]:
    """What a report tells: the score, and by their own names the numbers that mean something for a family."""
    score = score_of(family, scores)
    of_boxes = {"map_coco_101": scores.map_coco_101} if finds_boxes(family) else {}
    return {SCORE: score, score_name([family]): score} | of_boxes
