"""Fusing what several models found in the same images: weighted box fusion, and older rules to compare it with.

Boxes go in and come out in pixels of the original image: overlap and weighted means do not depend on the scale.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, assert_never, get_args

import numpy as np
from numpy.typing import NDArray

from vbd.config.checked import Share, between
from vbd.errors import InputError
from vbd.fusion.other_rules import non_maximum_weighted, soft_suppression, suppression
from vbd.fusion.wbf import CONFIDENCES, Confidence, Fused, weighted_box_fusion
from vbd.labels import NUM_FINDINGS
from vbd.records import Detections

Method = Literal["wbf", "nmw", "nms", "soft_nms", "soft_nms_gaussian"]
METHODS: tuple[Method, ...] = get_args(Method)

# What the competition's best teams used: 0.4 for the large findings, 0.5 for the small ones.
LARGE_LABELS = (0, 1, 3, 4, 12)
FIELD_THRESHOLDS: dict[int, float] = {label: 0.4 if label in LARGE_LABELS else 0.5 for label in range(NUM_FINDINGS)}


@dataclass(frozen=True)
class FusionOptions:
    """How boxes are fused. Raises ValueError for a value that means nothing."""

    method: Method = "wbf"
    confidence: Confidence = "avg"  # of wbf
    iou_threshold: float | Mapping[int, float] = 0.5  # one number, or one for each of the labels 0..13
    skip_threshold: Share = 0.0  # boxes of a lower score, before weights, are left out
    sigma: Annotated[float, between(0, 1e6, above=True)] = 0.5  # of soft_nms_gaussian
    min_score: Share = 1e-3  # of both soft_nms: what decays to this is left out

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method {self.method!r}; choose one of {', '.join(METHODS)}")
        if self.confidence not in CONFIDENCES:
            raise ValueError(f"confidence {self.confidence!r}; choose one of {', '.join(CONFIDENCES)}")
        for threshold in self.thresholds():
            if not 0 <= threshold < 1:
                raise ValueError(f"iou_threshold {threshold}: want 0 or more and less than 1")
        if not self.sigma > 0:
            raise ValueError(f"sigma {self.sigma}: want more than 0")

    def thresholds(self) -> NDArray[np.float64]:
        """The IoU threshold of each label: (14,)."""
        if not isinstance(self.iou_threshold, Mapping):
            return np.full(NUM_FINDINGS, float(self.iou_threshold))
        missing = set(range(NUM_FINDINGS)) - set(self.iou_threshold)
        if missing:
            raise ValueError(f"iou_threshold has no value for label {min(missing)}; want one for each of 0..13")
        return np.array([self.iou_threshold[label] for label in range(NUM_FINDINGS)], np.float64)

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, of which `checked.parse` makes the options again."""
        values = dataclasses.asdict(self)
        if isinstance(self.iou_threshold, Mapping):
            values["iou_threshold"] = {str(label): value for label, value in self.iou_threshold.items()}
        return values


@dataclass(frozen=True)
class FlatMembers:
    """The detections of several members on the same images, flattened once and fused many times."""

    image_ids: tuple[str, ...]  # all images that any member has seen, in order of first appearance
    boxes: NDArray[np.float64]  # (n, 4) xyxy, original pixels
    scores: NDArray[np.float64]  # (n,)
    labels: NDArray[np.int64]  # (n,)
    models: NDArray[np.int64]  # (n,) index of the member
    images: NDArray[np.int64]  # (n,) index into image_ids
    no_finding: NDArray[np.float64]  # (members, images); NaN where a member has no estimate


def fuse(
    runs: Sequence[Detections], weights: Sequence[float], options: FusionOptions | None = None, **changes: Any
) -> Detections:
    """Fuses several models' detections of ONE image; see `fuse_all`. Raises ValueError for different images."""
    image_ids = {run.image_id for run in runs}
    if len(image_ids) != 1:
        raise ValueError(f"fuse takes the detections of one image, not of {sorted(image_ids)}")
    return fuse_all([[run] for run in runs], weights, options, **changes)[0]


def fuse_all(
    members: Sequence[Sequence[Detections]],
    weights: Sequence[float],
    options: FusionOptions | None = None,
    **changes: Any,
) -> list[Detections]:
    """Fuses the detections of every image, joined by image_id, in order of first appearance.

    `changes` are fields of FusionOptions by name, in place of those of `options`. A member that lacks an image, or found
    nothing in it, counts as a model without boxes. The probability of a normal image becomes the weighted mean over the
    members that have one.
    """
    flat = flatten_members(members)
    fused = fuse_flat(flat, weights, options, **changes)
    no_finding = mean_no_finding(flat.no_finding, np.asarray(weights, np.float64))
    return split_images(fused, flat.image_ids, no_finding)


def flatten_members(members: Sequence[Sequence[Detections]]) -> FlatMembers:
    """Detections of several members as flat arrays; raises InputError when a member has an image twice."""
    index: dict[str, int] = {}
    for member in members:
        for found in member:
            index.setdefault(found.image_id, len(index))
    no_finding = np.full((len(members), len(index)), np.nan)
    images_of_member = []
    for m, member in enumerate(members):
        positions = np.array([index[found.image_id] for found in member], np.int64)
        counts = np.bincount(positions, minlength=len(index))
        if (counts > 1).any():
            raise InputError(f"member {m}: image {list(index)[int(counts.argmax())]!r} comes twice")
        known = [(i, found.no_finding) for i, found in zip(positions, member, strict=True)]
        no_finding[m, positions] = [np.nan if p is None else p for _, p in known]
        images_of_member.append(np.repeat(positions, [len(found.boxes) for found in member]))
    every = [found for member in members for found in member]
    return FlatMembers(
        image_ids=tuple(index),
        boxes=_joined([found.boxes for found in every], np.zeros((0, 4)), np.float64),
        scores=_joined([found.scores for found in every], np.zeros(0), np.float64),
        labels=_joined([found.labels for found in every], np.zeros(0), np.int64),
        models=np.repeat(np.arange(len(members)), [len(images) for images in images_of_member]),
        images=_joined(images_of_member, np.zeros(0), np.int64),
        no_finding=no_finding,
    )


def fuse_flat(
    flat: FlatMembers, weights: Sequence[float] | NDArray, options: FusionOptions | None = None, **changes: Any
) -> Fused:
    """Fuses flat boxes of many images with one weight for each member; scores end in 0..1. Options as in `fuse_all`."""
    chosen = dataclasses.replace(options or FusionOptions(), **changes)
    weight = np.asarray(weights, np.float64)
    if weight.shape != (len(flat.no_finding),):
        raise ValueError(f"{weight.size} weights for {len(flat.no_finding)} members")
    if not (np.isfinite(weight) & (weight >= 0)).all() or not weight.any():
        raise ValueError(f"weights {weight.tolist()}: want one number of 0 or more per member, not all 0")
    columns = (flat.boxes, flat.scores, flat.labels, flat.models)
    rest: dict[str, Any] = {
        "weights": weight,
        "iou_threshold": chosen.thresholds(),
        "skip_threshold": chosen.skip_threshold,
        "images": flat.images,
    }
    match chosen.method:
        case "wbf":
            fused = weighted_box_fusion(*columns, confidence=chosen.confidence, **rest)
            return _bounded(fused) if chosen.confidence == "sum" else fused
        case "nmw":
            return non_maximum_weighted(*columns, **rest)
        case "nms":
            return suppression(*columns, **rest)
        case "soft_nms":
            return soft_suppression(*columns, **rest, min_score=chosen.min_score)
        case "soft_nms_gaussian":
            return soft_suppression(*columns, **rest, min_score=chosen.min_score, sigma=chosen.sigma)
        case _:
            assert_never(chosen.method)


def split_images(fused: Fused, image_ids: Sequence[str], no_finding: NDArray) -> list[Detections]:
    """One Detections for each image id; `no_finding` (images,) is NaN where nobody has an estimate."""
    ends = np.cumsum(np.bincount(fused.images, minlength=len(image_ids))).tolist()
    scores = fused.scores.astype(np.float32)
    return [
        Detections(
            image_id,
            fused.boxes[start:end],
            scores[start:end],
            fused.labels[start:end],
            None if math.isnan(p) else p,
        )
        for image_id, start, end, p in zip(image_ids, [0, *ends], ends, no_finding.tolist(), strict=False)
    ]


def mean_no_finding(no_finding: NDArray, weights: NDArray) -> NDArray[np.float64]:
    """Weighted mean over members, leaving out those without an estimate: (members, images), (members,) -> (images,)."""
    known = ~np.isnan(no_finding)
    total = weights @ known
    summed = weights @ np.where(known, no_finding, 0.0)
    return np.divide(summed, total, out=np.full(no_finding.shape[1], np.nan), where=total > 0)


def _joined(parts: Sequence[NDArray], empty: NDArray, dtype: type) -> NDArray:
    # Joined as they are and cast at once: casting each of thousands of small arrays takes several times as long.
    return np.concatenate(parts).astype(dtype, copy=False) if len(parts) else empty.astype(dtype)


def _bounded(fused: Fused) -> Fused:
    """Summed confidences brought into 0..1 by 1 - exp(-s), which keeps their order and is near s where s is small."""
    return Fused(fused.boxes, -np.expm1(-fused.scores), fused.labels, fused.images, fused.members)
