"""P(no finding): from the boxes that were found, from classifiers of whole images, or from both; whichever predicts best.

Each is a logistic regression on a few numbers of an image, fitted on images that no model was trained on. Which source is
the best is settled out of fold by log loss, within the images that it is fitted on.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vbd.config.checked import Number
from vbd.ensemble.scores.calibrate import split_parts
from vbd.ensemble.scores.curves import losses_of
from vbd.errors import InputError
from vbd.evaluation.average_precision import average_precisions
from vbd.evaluation.intervals import Interval, percentile_interval, weights_of_replicates
from vbd.evaluation.matching import match
from vbd.labels import NO_FINDING
from vbd.records import Detections, Truth

Source = Literal["boxes", "classifiers", "both"]

# Features are logarithms: what is nearer to 0 or 1 counts as this.
_EDGE = 1e-6
# A probability of exactly 0 cannot be submitted, nor one be damped that is exactly 1.
_MOST_LOGIT = 12.0
_PARTS = 5


@dataclass(frozen=True)
class Evidence:
    """What there is to tell normal images by, image by image."""

    detections: Sequence[Detections]  # (n,) calibrated and fused; without boxes where no detector is used
    logits: NDArray[np.float64] | None  # (n,) the classifiers' mean; None without one
    has_boxes: bool = True  # whether a detector was asked

    @property
    def sources(self) -> tuple[Source, ...]:
        """What P(no finding) can be told from."""
        if not self.has_boxes:
            return ("classifiers",)
        return ("boxes",) if self.logits is None else ("boxes", "classifiers", "both")

    def features(self, source: Source) -> NDArray[np.float64]:
        """-> (n, k): two numbers of the boxes, one of the classifiers."""
        parts = []
        if source != "classifiers":
            parts.append(box_features(self.detections))
        if source != "boxes":
            assert self.logits is not None
            parts.append(self.logits[:, None])
        return np.concatenate(parts, axis=1)

    def take(self, chosen: NDArray) -> "Evidence":
        """The evidence of some images, by a mask or by places."""
        places = np.arange(len(self.detections))[chosen]
        logits = None if self.logits is None else self.logits[places]
        return Evidence([self.detections[i] for i in places], logits, self.has_boxes)


@dataclass(frozen=True)
class NoFinding:
    """A logistic regression on the features of one source."""

    source: Source
    coefficients: tuple[Number, ...]
    intercept: Number

    def __post_init__(self) -> None:
        wanted = {"boxes": 2, "classifiers": 1, "both": 3}[self.source]
        if len(self.coefficients) != wanted:
            raise ValueError(f"{len(self.coefficients)} coefficients of the source {self.source}; want {wanted}")

    def probabilities(self, evidence: Evidence) -> NDArray[np.float64]:
        """P(normal image) -> (n,), strictly between 0 and 1."""
        logits = evidence.features(self.source) @ np.array(self.coefficients) + self.intercept
        return 1 / (1 + np.exp(-np.clip(logits, -_MOST_LOGIT, _MOST_LOGIT)))

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, of which `checked.parse` makes a NoFinding again."""
        return dataclasses.asdict(self)


def box_features(detections: Sequence[Detections]) -> NDArray[np.float64]:
    """What an image's calibrated boxes say about it being normal: -> (images, 2).

    The logit of the best score, and the logarithm of the expected number of findings.
    """
    best = np.array([found.scores.max(initial=0) for found in detections], np.float64).clip(_EDGE, 1 - _EDGE)
    expected = np.array([found.scores.sum(dtype=np.float64) for found in detections], np.float64)
    return np.stack([np.log(best / (1 - best)), np.log(expected + _EDGE)], axis=1)


def mean_logits(classifiers: Mapping[str, Sequence[Sequence[Detections]]], image_ids: Sequence[str]) -> NDArray | None:
    """The mean logit of P(no finding) over classifiers, of each the mean over its checkpoints: -> (n,), or None without any.

    Raises InputError where one has no estimate for an image.
    """
    if not classifiers:
        return None
    members = [
        np.mean([_logits(name, run, image_ids) for run in checkpoints], axis=0)
        for name, checkpoints in classifiers.items()
    ]
    return np.mean(members, axis=0)


def _logits(name: str, run: Sequence[Detections], image_ids: Sequence[str]) -> NDArray[np.float64]:
    known = {found.image_id: found.no_finding for found in run}
    missing = next((image_id for image_id in image_ids if known.get(image_id) is None), None)
    if missing is not None:
        raise InputError(f"{name}: no P(no finding) for image {missing!r}; train the classifier again")
    p = np.array([known[image_id] for image_id in image_ids], np.float64).clip(_EDGE, 1 - _EDGE)
    return np.log(p / (1 - p))


def are_normal(truths: Sequence[Truth]) -> NDArray[np.bool_]:
    """Whether each image has no finding: -> (n,)."""
    return np.array([not len(truth.boxes) for truth in truths], bool)


def fit_no_finding(evidence: Evidence, normal: NDArray[np.bool_], source: Source) -> NoFinding:
    """Fits P(normal image) on images that the models were not trained on.

    With only normal images, or none, it is their smoothed share, whatever the evidence.
    """
    from sklearn.linear_model import LogisticRegression  # 1 s: kept out of --help

    features = evidence.features(source)
    if normal.all() or not normal.any():
        share = (normal.sum() + 1) / (len(normal) + 2)
        return NoFinding(source, (0.0,) * features.shape[1], float(np.log(share / (1 - share))))
    mean, spread = features.mean(0), features.std(0)
    spread = np.where(spread > 0, spread, 1.0)
    model = LogisticRegression(solver="newton-cholesky").fit((features - mean) / spread, normal)
    coefficients = model.coef_[0] / spread
    return NoFinding(source, tuple(coefficients.tolist()), float(model.intercept_[0] - coefficients @ mean))


@dataclass(frozen=True)
class FittedNoFinding:
    """The source that predicts best, fitted on all images, and what each image is told by a fit without it."""

    model: NoFinding
    log_losses: dict[Source, float]  # out of fold
    out_of_fold: NDArray[np.float64]  # (n,) probabilities from the chosen source


def fit_best_source(evidence: Evidence, normal: NDArray[np.bool_], *, seed: int) -> FittedNoFinding:
    """Compares the sources out of fold by log loss, and fits the best; the first of equals."""
    told = {source: crosswise(evidence, normal, source, seed=seed) for source in evidence.sources}
    losses = {source: losses_of(p, normal).log_loss for source, p in told.items()}
    best = min(losses, key=lambda source: losses[source])
    return FittedNoFinding(fit_no_finding(evidence, normal, best), losses, told[best])


def crosswise(evidence: Evidence, normal: NDArray[np.bool_], source: Source, *, seed: int) -> NDArray[np.float64]:
    """P(normal image) of each image by a fit that has not seen it: -> (n,)."""
    image_ids = [found.image_id for found in evidence.detections]
    parts = split_parts(image_ids, _PARTS, seed=seed, purpose="no finding")
    told = np.empty(len(parts))
    for part in np.unique(parts):
        unseen = parts == part
        fitted = fit_no_finding(evidence.take(~unseen), normal[~unseen], source)
        told[unseen] = fitted.probabilities(evidence.take(unseen))
    return told


# -------------------------------------------------------------------------------------------------------------- scores


@dataclass(frozen=True)
class SourceScore:
    """How well probabilities of normal images do; NaN where there is nothing to tell apart."""

    average_precision: float  # of "No finding", as the competition counts it
    auc: float
    log_loss: Interval

    def to_json(self) -> dict[str, Any]:
        """Plain numbers."""
        return dataclasses.asdict(self)


def score_probabilities(p: NDArray, normal: NDArray[np.bool_], *, seed: int, replicates: int = 1_000) -> SourceScore:
    """Scores P(normal image) (n,) of images that it was not fitted on."""
    whole = [Detections(str(i), no_finding=float(value)) for i, value in enumerate(p)]
    box, label = np.array([[0, 0, 9, 9]], np.float32), np.zeros(1, np.int64)
    truths = [Truth(str(i)) if is_normal else Truth(str(i), box, label) for i, is_normal in enumerate(normal)]
    losses = -np.where(normal, np.log(p), np.log1p(-p))
    weights = weights_of_replicates(len(p), seed=seed, replicates=replicates)
    drawn = np.array([weight @ losses / len(p) for weight in weights])
    return SourceScore(
        average_precision=float(average_precisions(match(whole, truths))[NO_FINDING]),
        auc=area_under_curve(p, normal),
        log_loss=percentile_interval(float(losses.mean()) if len(p) else float("nan"), drawn, 0.95),
    )


def area_under_curve(p: NDArray, positive: NDArray[np.bool_]) -> float:
    """Share of pairs of a positive and a negative that are in order, ties as a half (Mann and Whitney): (n,), (n,)."""
    num_positives, num_negatives = int(positive.sum()), int((~positive).sum())
    if not num_positives or not num_negatives:
        return float("nan")
    _, group, counts = np.unique(p, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[group]
    wins = ranks[positive].sum() - num_positives * (num_positives + 1) / 2
    return float(wins / (num_positives * num_negatives))
