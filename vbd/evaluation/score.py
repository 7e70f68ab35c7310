"""The one number that a run is judged by: `score` in its reports."""

from collections.abc import Iterable

from vbd.config import Family
from vbd.evaluation.average_precision import Scores
from vbd.evaluation.intervals import Interval, Intervals
from vbd.labels import NO_FINDING, NO_FINDING_NAME

# Its key in a report of a run.
SCORE = "score"
_OF_DETECTORS, _OF_CLASSIFIERS = "map_40_findings", "ap_no_finding"


def score_name(families: Iterable[str]) -> str:
    """What the score of runs is: `map_40_findings` of detectors, the average precision of "No finding" of classifiers."""
    names = {_OF_CLASSIFIERS if family == "classifier" else _OF_DETECTORS for family in families}
    return names.pop() if len(names) == 1 else SCORE


def score_of(family: Family, scores: Scores) -> float:
    """The score of what a model of a family found; NaN where there is nothing to be found."""
    return scores.per_class[NO_FINDING_NAME] if family == "classifier" else scores.map_40_findings


def interval_of(family: Family, found: Intervals) -> Interval:
    """The interval of the score."""
    return found.per_class[NO_FINDING_NAME] if family == "classifier" else found.map_40_findings


def score_column(family: Family) -> int:
    """The score's place in what `intervals.with_means` gives."""
    return 2 + NO_FINDING if family == "classifier" else 1


def numbers_of(family: Family, scores: Scores) -> dict[str, float]:
    """What a report tells: the score, and by their own names the numbers that mean something for a family."""
    score = score_of(family, scores)
    of_boxes = {} if family == "classifier" else {"map_coco_101": scores.map_coco_101}
    return {SCORE: score, score_name([family]): score} | of_boxes
