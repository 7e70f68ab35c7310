"""Scores that mean the same for every model: the probability of a true positive, and of a normal image.

Fusing models whose scores are not calibrated to each other can be worse than the best of them. Isotonic regression:
Zadrozny and Elkan, "Transforming classifier scores into accurate multiclass probability estimates", 2002.
All fits are plain numbers that live in JSON.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vbd.errors import InputError
from vbd.evaluation.average_precision import flatten, match_flat
from vbd.labels import NO_FINDING, NUM_FINDINGS
from vbd.records import Detections, Truth
from vbd.storage import stable_hash

# Share of the raw score in a calibrated one: keeps the curve rising where isotonic regression is flat, so that no
# ranking is lost to ties, at the price of at most this much bias.
_SLOPE = 0.01
# Score features are logarithms: what is nearer to 0 or 1 counts as this.
_EDGE = 1e-6


@dataclass(frozen=True)
class Curve:
    """A rising piecewise linear function of the score; constant beyond its knots but for `_SLOPE`."""

    scores: tuple[float, ...]
    probabilities: tuple[float, ...]

    def __call__(self, scores: NDArray) -> NDArray[np.float64]:
        """Probabilities of scores (n,) -> (n,), strictly rising with the score."""
        raw = np.asarray(scores, np.float64)
        return (1 - _SLOPE) * np.interp(raw, self.scores, self.probabilities) + _SLOPE * raw


@dataclass(frozen=True)
class Calibration:
    """One model's curves: of its own for classes with enough true positives, pooled for the others."""

    pooled: Curve
    per_class: dict[int, Curve]

    def apply(self, detections: Sequence[Detections]) -> list[Detections]:
        """The same detections with P(true positive) as score, by descending score."""
        return [self._apply(found) for found in detections]

    def _apply(self, found: Detections) -> Detections:
        scores = self.pooled(found.scores)
        for label, curve in self.per_class.items():
            rows = found.labels == label
            scores[rows] = curve(found.scores[rows])
        order = np.argsort(-scores, kind="stable")
        return dataclasses.replace(
            found,
            boxes=found.boxes[order],
            scores=scores[order].astype(np.float32),
            labels=found.labels[order],
        )

    def to_json(self) -> dict[str, Any]:
        """Plain numbers; `calibration_from_json` is the inverse."""
        return {
            "pooled": dataclasses.asdict(self.pooled),
            "per_class": {str(label): dataclasses.asdict(curve) for label, curve in self.per_class.items()},
        }


@dataclass(frozen=True)
class NoFinding:
    """P(normal image) from an image's calibrated boxes: a logistic regression on `no_finding_features`."""

    coefficients: tuple[float, ...]
    intercept: float

    def apply(self, detections: Sequence[Detections]) -> list[Detections]:
        """The same detections with `no_finding` set, strictly between 0 and 1."""
        logits = no_finding_features(detections) @ np.array(self.coefficients) + self.intercept
        # float32's exp overflows beyond 88, and a probability of exactly 0 cannot be submitted.
        probabilities = 1 / (1 + np.exp(-np.clip(logits, -12, 12)))
        return [
            dataclasses.replace(found, no_finding=float(p)) for found, p in zip(detections, probabilities, strict=True)
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain numbers; `no_finding_from_json` is the inverse."""
        return dataclasses.asdict(self)


def calibration_from_json(values: dict[str, Any]) -> Calibration:
    """A Calibration from what `to_json` gave."""
    curves = {int(label): _curve_from_json(curve) for label, curve in values["per_class"].items()}
    return Calibration(_curve_from_json(values["pooled"]), curves)


def no_finding_from_json(values: dict[str, Any]) -> NoFinding:
    """A NoFinding from what `to_json` gave."""
    return NoFinding(tuple(values["coefficients"]), float(values["intercept"]))


def fit_calibration(
    detections: Sequence[Detections], truths: Sequence[Truth], *, iou_threshold: float = 0.4, min_positives: int = 50
) -> Calibration:
    """Fits one model's scores to P(true positive at IoU > `iou_threshold`), on images it was not trained on.

    A class has its own curve when it has at least `min_positives` true positives and as many false ones.
    """
    found, wanted = flatten([dataclasses.replace(d, no_finding=None) for d in detections], truths)
    matches = match_flat(found, wanted, len(truths), iou_threshold=iou_threshold)
    per_class = {}
    for label in range(NUM_FINDINGS):
        rows = slice(matches.starts[label], matches.starts[label + 1])
        hits = matches.is_true_positive[rows]
        if min(hits.sum(), (~hits).sum()) >= min_positives:
            per_class[label] = _fit_curve(matches.scores[rows], hits)
    end = matches.starts[NO_FINDING]
    return Calibration(_fit_curve(matches.scores[:end], matches.is_true_positive[:end]), per_class)


def fit_no_finding(detections: Sequence[Detections], truths: Sequence[Truth]) -> NoFinding:
    """Fits P(normal image) on calibrated detections of images that the models were not trained on, joined by id.

    With only normal images, or none, it is their smoothed share, whatever the boxes.
    """
    from sklearn.linear_model import LogisticRegression  # 1 s: kept out of --help

    is_normal = {truth.image_id: not len(truth.boxes) for truth in truths}
    for found in detections:
        if found.image_id not in is_normal:
            raise InputError(f"detections of image {found.image_id!r}: the ground truth does not have this image")
    normal = np.array([is_normal[found.image_id] for found in detections], bool)
    features = no_finding_features(detections)
    if normal.all() or not normal.any():
        share = (normal.sum() + 1) / (len(normal) + 2)
        return NoFinding((0.0,) * features.shape[1], float(np.log(share / (1 - share))))
    mean, spread = features.mean(0), features.std(0)
    spread = np.where(spread > 0, spread, 1.0)
    model = LogisticRegression().fit((features - mean) / spread, normal)
    coefficients = model.coef_[0] / spread
    return NoFinding(tuple(coefficients.tolist()), float(model.intercept_[0] - coefficients @ mean))


def no_finding_features(detections: Sequence[Detections]) -> NDArray[np.float64]:
    """What an image's boxes say about it being normal: -> (images, 2).

    The logit of the best score, and the logarithm of the expected number of findings.
    """
    best = np.array([found.scores.max(initial=0) for found in detections], np.float64).clip(_EDGE, 1 - _EDGE)
    expected = np.array([found.scores.sum(dtype=np.float64) for found in detections], np.float64)
    return np.stack([np.log(best / (1 - best)), np.log(expected + _EDGE)], axis=1)


def split_parts(image_ids: Sequence[str], parts: int, *, seed: int = 0) -> NDArray[np.int64]:
    """Part 0..parts-1 of each image; it depends on the image's id and the seed alone: (n,) -> (n,)."""
    return np.array([stable_hash(f"{seed}:{image_id}") % parts for image_id in image_ids], np.int64)


def calibrate_crosswise(
    detections: Sequence[Detections], truths: Sequence[Truth], *, parts: int = 5, seed: int = 0
) -> list[Detections]:
    """Calibrated scores, each image's by a fit that has not seen it; in the order of `detections`."""
    return _crosswise(detections, truths, parts, seed, fit_calibration)


def no_finding_crosswise(
    detections: Sequence[Detections], truths: Sequence[Truth], *, parts: int = 5, seed: int = 0
) -> list[Detections]:
    """Detections with `no_finding` set, each image's by a fit that has not seen it; in the order of `detections`."""
    return _crosswise(detections, truths, parts, seed, fit_no_finding)


def _crosswise(
    detections: Sequence[Detections],
    truths: Sequence[Truth],
    parts: int,
    seed: int,
    fit: Callable[[list[Detections], list[Truth]], Calibration | NoFinding],
) -> list[Detections]:
    part_of_found = split_parts([found.image_id for found in detections], parts, seed=seed)
    part_of_truth = split_parts([truth.image_id for truth in truths], parts, seed=seed)
    result: dict[str, Detections] = {}
    for part in range(parts):
        fitted = fit(
            [found for found, p in zip(detections, part_of_found, strict=True) if p != part],
            [truth for truth, p in zip(truths, part_of_truth, strict=True) if p != part],
        )
        held_out = [found for found, p in zip(detections, part_of_found, strict=True) if p == part]
        result |= {found.image_id: found for found in fitted.apply(held_out)}
    return [result[found.image_id] for found in detections]


def _fit_curve(scores: NDArray, hits: NDArray[np.bool_]) -> Curve:
    """Isotonic regression of hits on scores, its steps joined at their middles: a rising line instead of stairs."""
    from sklearn.isotonic import IsotonicRegression

    if not len(scores):
        return Curve((0.0, 1.0), (0.0, 1.0))
    order = np.argsort(scores, kind="stable")
    steps = IsotonicRegression().fit_transform(scores[order], hits[order].astype(np.float64))
    _, step, size = np.unique(steps, return_inverse=True, return_counts=True)
    middle = np.bincount(step, weights=scores[order]) / size
    positives = np.bincount(step, weights=hits[order])
    # One more box of the average kind in each step: two lucky boxes are no certainty. The running maximum keeps order.
    average = (hits.sum() + 0.5) / (len(hits) + 1)
    probabilities = np.maximum.accumulate((positives + average) / (size + 1))
    is_first = np.append(True, np.diff(middle) > 0)
    return Curve(tuple(middle[is_first].tolist()), tuple(probabilities[is_first].tolist()))


def _curve_from_json(values: dict[str, Any]) -> Curve:
    return Curve(tuple(values["scores"]), tuple(values["probabilities"]))
