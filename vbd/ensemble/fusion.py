"""Fusing what several models found in the same images: weighted box fusion, and three older rules to compare it with.

Boxes go in and come out in pixels of the original image: overlap and weighted means do not depend on the scale.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, assert_never

import numpy as np
from numpy.typing import NDArray

from vbd.errors import InputError
from vbd.fusing import Confidence, Fused, weighted_box_fusion
from vbd.labels import NUM_FINDINGS
from vbd.records import Detections
from vbd.suppression import non_maximum_weighted, soft_suppression, suppression

Method = Literal["wbf", "nmw", "nms", "soft_nms"]

# What the competition's best teams used: 0.4 for the large findings, 0.5 for the small ones.
LARGE_LABELS = (0, 1, 3, 4, 12)
FIELD_THRESHOLDS: dict[int, float] = {label: 0.4 if label in LARGE_LABELS else 0.5 for label in range(NUM_FINDINGS)}


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
    runs: Sequence[Detections],
    weights: Sequence[float],
    *,
    iou_threshold: float | Mapping[int, float] = 0.5,
    skip_threshold: float = 0.0,
    confidence: Confidence = "avg",
    method: Method = "wbf",
) -> Detections:
    """Fuses several models' detections of ONE image; see `fuse_all`. Raises ValueError for different images."""
    image_ids = {run.image_id for run in runs}
    if len(image_ids) != 1:
        raise ValueError(f"fuse takes the detections of one image, not of {sorted(image_ids)}")
    return fuse_all(
        [[run] for run in runs],
        weights,
        iou_threshold=iou_threshold,
        skip_threshold=skip_threshold,
        confidence=confidence,
        method=method,
    )[0]


def fuse_all(
    members: Sequence[Sequence[Detections]],
    weights: Sequence[float],
    *,
    iou_threshold: float | Mapping[int, float] = 0.5,
    skip_threshold: float = 0.0,
    confidence: Confidence = "avg",
    method: Method = "wbf",
) -> list[Detections]:
    """Fuses the detections of every image, joined by image_id, in order of first appearance.

    A member that lacks an image, or found nothing in it, counts as a model without boxes. `iou_threshold` is one number
    or one for each of the labels 0..13. `confidence` belongs to `wbf`. The probability of a normal image becomes the
    weighted mean over the members that have one.
    """
    flat = flatten_members(members)
    fused = fuse_flat(
        flat,
        weights,
        iou_threshold=iou_threshold,
        skip_threshold=skip_threshold,
        confidence=confidence,
        method=method,
    )
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
        boxes=np.concatenate([np.zeros((0, 4)), *(found.boxes for found in every)]).astype(np.float64),
        scores=np.concatenate([np.zeros(0), *(found.scores for found in every)]).astype(np.float64),
        labels=np.concatenate([np.zeros(0, np.int64), *(found.labels for found in every)]),
        models=np.repeat(np.arange(len(members)), [len(images) for images in images_of_member]),
        images=np.concatenate([np.zeros(0, np.int64), *images_of_member]),
        no_finding=no_finding,
    )


def fuse_flat(
    flat: FlatMembers,
    weights: Sequence[float] | NDArray,
    *,
    iou_threshold: float | Mapping[int, float] = 0.5,
    skip_threshold: float = 0.0,
    confidence: Confidence = "avg",
    method: Method = "wbf",
) -> Fused:
    """Fuses flat boxes of many images with one weight for each member; scores end in 0..1."""
    weight = np.asarray(weights, np.float64)
    if len(weight) != len(flat.no_finding):
        raise ValueError(f"{len(weight)} weights for {len(flat.no_finding)} members")
    thresholds = _thresholds(iou_threshold)
    columns = (flat.boxes, flat.scores, flat.labels, flat.models)
    rest: dict[str, Any] = {
        "weights": weight,
        "iou_threshold": thresholds,
        "skip_threshold": skip_threshold,
        "images": flat.images,
    }
    match method:
        case "wbf":
            fused = weighted_box_fusion(*columns, confidence=confidence, **rest)
            return _bounded(fused) if confidence == "sum" else fused
        case "nmw":
            return non_maximum_weighted(*columns, **rest)
        case "nms":
            return suppression(*columns, **rest)
        case "soft_nms":
            return soft_suppression(*columns, **rest)
        case _:
            assert_never(method)


def split_images(fused: Fused, image_ids: Sequence[str], no_finding: NDArray) -> list[Detections]:
    """One Detections for each image id; `no_finding` (images,) is NaN where nobody has an estimate."""
    ends = np.cumsum(np.bincount(fused.images, minlength=len(image_ids)))[:-1]
    parts = (np.split(column, ends) for column in (fused.boxes, fused.scores.astype(np.float32), fused.labels))
    return [
        Detections(image_id, boxes, scores, labels, None if np.isnan(p) else float(p))
        for image_id, boxes, scores, labels, p in zip(image_ids, *parts, no_finding, strict=False)
    ]


def mean_no_finding(no_finding: NDArray, weights: NDArray) -> NDArray[np.float64]:
    """Weighted mean over members, leaving out those without an estimate: (members, images), (members,) -> (images,)."""
    known = ~np.isnan(no_finding)
    total = weights @ known
    summed = weights @ np.where(known, no_finding, 0.0)
    return np.divide(summed, total, out=np.full(no_finding.shape[1], np.nan), where=total > 0)


def _thresholds(iou_threshold: float | Mapping[int, float]) -> NDArray[np.float64]:
    if not isinstance(iou_threshold, Mapping):
        return np.full(NUM_FINDINGS, float(iou_threshold))
    missing = set(range(NUM_FINDINGS)) - set(iou_threshold)
    if missing:
        raise ValueError(f"iou_threshold has no value for label {min(missing)}; want one for each of 0..13")
    return np.array([iou_threshold[label] for label in range(NUM_FINDINGS)], np.float64)


def _bounded(fused: Fused) -> Fused:
    """Summed confidences brought into 0..1 by 1 - exp(-s), which keeps their order and is near s where s is small."""
    return Fused(fused.boxes, -np.expm1(-fused.scores), fused.labels, fused.images, fused.members)
