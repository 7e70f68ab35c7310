"""What the report on an ensemble measures beyond what was needed to make it."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vbd.ensemble.normal.no_finding import are_normal
from vbd.ensemble.result import ENSEMBLE, EnsembleResult
from vbd.ensemble.scores.calibrate import calibrate_crosswise
from vbd.ensemble.scores.reliability import Reliability, reliability
from vbd.evaluation.intervals import Intervals, bootstrap
from vbd.evaluation.matching import match
from vbd.labels import NUM_FINDINGS
from vbd.records import Detections, Truth

_SEED = 0
_BINS = 10


@dataclass(frozen=True)
class Bins:
    """Probabilities of normal images in bins of equal width; NaN in an empty one."""

    counts: NDArray[np.int64]
    mean_p: NDArray[np.float64]
    shares: NDArray[np.float64]  # of normal images


@dataclass(frozen=True)
class Measures:
    """Scores with intervals, and whether scores keep their word."""

    raw: dict[str, Intervals]  # of each detector, before calibration
    intervals: dict[str, Intervals]  # of each member, calibrated, and of the ensemble on images it was made without
    before: dict[str, Reliability]  # raw scores of each detector
    after: dict[str, Reliability]  # calibrated without each image; of the ensemble, fused before the gate
    no_finding: Bins


def measure(result: EnsembleResult, *, replicates: int) -> Measures:
    """Everything is on images that took no part in what is scored."""
    truths, rest = result.truths, {"seed": _SEED, "replicates": replicates}
    raw = {name: result.found[name] for name in result.detectors}
    calibrated = {name: calibrate_crosswise(found, truths) for name, found in raw.items()}
    fused = {ENSEMBLE: result.fitted.ungated} if raw else {}
    told = calibrated | {name: result.found[name] for name in result.classifiers} | {ENSEMBLE: result.fitted.unseen}
    return Measures(
        raw={name: bootstrap(found, truths, **rest) for name, found in raw.items()},
        intervals={name: bootstrap(found, truths, **rest) for name, found in told.items()},
        before={name: reliability(found, truths, **rest) for name, found in raw.items()},
        after={name: reliability(found, truths, **rest) for name, found in (calibrated | fused).items()},
        no_finding=_bins(result.fitted.unseen, truths),
    )


def _bins(detections: Sequence[Detections], truths: Sequence[Truth]) -> Bins:
    p, normal = np.array([found.no_finding for found in detections], np.float64), are_normal(truths)
    place = np.minimum((p * _BINS).astype(int), _BINS - 1)
    counts, p_sums, normals = (np.bincount(place, weights, _BINS) for weights in (None, p, normal))
    with np.errstate(invalid="ignore"):
        return Bins(counts, p_sums / counts, normals / counts)


# --------------------------------------------------------------------------------------------------------------- cases


@dataclass(frozen=True)
class Case:
    """An image that is worth a look."""

    truth: Truth
    found: Detections
    hit_score: (
        float  # mean over its findings of the score that each was found with, 0 where it was missed; NaN if normal
    )
    false_score: float  # the highest of its false boxes; 0 without one


@dataclass(frozen=True)
class Cases:
    """Images from both ends."""

    best: tuple[Case, ...]  # with findings: those found with high scores, and no false box near them
    worst: tuple[Case, ...]
    alarms: tuple[Case, ...]  # normal images with the highest false boxes
    score_threshold: float  # from which a box is drawn: one false box per image on average


def cases_of(detections: Sequence[Detections], truths: Sequence[Truth], *, limit: int) -> Cases:
    """The best and worst images, by the findings' scores minus the highest false box; `limit` of each kind."""
    found_in = {found.image_id: found for found in detections}
    matches = match([dataclasses.replace(found, no_finding=None) for found in detections], truths)
    end = matches.starts[NUM_FINDINGS]
    images, scores, hits = matches.images[:end], matches.scores[:end], matches.is_true_positive[:end]
    counts = np.array([len(truth.labels) for truth in truths])
    with np.errstate(invalid="ignore"):
        hit_scores = np.bincount(images, scores * hits, len(truths)) / np.where(counts, counts, np.nan)
    false_scores = np.zeros(len(truths))
    np.maximum.at(false_scores, images[~hits], scores[~hits])
    every = [
        Case(truth, found_in.get(truth.image_id, Detections(truth.image_id)), float(hit), float(false))
        for truth, hit, false in zip(truths, hit_scores, false_scores, strict=True)
    ]
    ill = sorted(
        (case for case in every if len(case.truth.labels)),
        key=lambda case: (case.false_score - case.hit_score, case.truth.image_id),
    )
    normal = sorted(
        (case for case in every if not len(case.truth.labels) and case.false_score > 0),
        key=lambda case: (-case.false_score, case.truth.image_id),
    )
    limit_each = min(limit, len(ill) // 2) if len(ill) < 2 * limit else limit
    false = np.sort(scores[~hits])[::-1]
    threshold = float(false[len(truths)]) if len(false) > len(truths) else 0.0
    return Cases(tuple(ill[:limit_each]), tuple(ill[::-1][:limit_each]), tuple(normal[:limit]), threshold)
