"""The competition's metric: PASCAL VOC 2010 mean average precision at IoU > 0.4 over 14 findings and "No finding".

Everham et al., "The PASCAL Visual Object Classes (VOC) Challenge", 2010: precision is made to fall with recall and
integrated over all points. Box sizes are `x_max - x_min`: coordinates are continuous, without the old toolkit's +1.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vbd.errors import InputError
from vbd.labels import NO_FINDING, NO_FINDING_BOX, NUM_FINDINGS, name_of
from vbd.records import Detections, Truth

NUM_CLASSES = NUM_FINDINGS + 1
CLASSES: tuple[str, ...] = tuple(name_of(label) for label in range(NUM_CLASSES))


@dataclass(frozen=True)
class FlatBoxes:
    """The boxes of many images, one after the other; class 14 has the box 0 0 1 1."""

    images: NDArray[np.int64]  # (n,) index of each box's image
    labels: NDArray[np.int64]  # (n,) 0..14
    boxes: NDArray[np.float64]  # (n, 4) xyxy, original pixels
    scores: NDArray[np.float64]  # (n,); of truths: 1


@dataclass(frozen=True)
class Matches:
    """Every detection with its verdict, by class and then by descending score; the bootstrap only weighs its images."""

    scores: NDArray[np.float64]  # (n,)
    is_true_positive: NDArray[np.bool_]  # (n,)
    images: NDArray[np.int64]  # (n,) index of the image
    rows: NDArray[np.int64]  # (n,) where the detection stood in the flat input
    starts: NDArray[np.int64]  # (16,) where each class begins, and the end
    num_truths: NDArray[np.int64]  # (15, images) boxes to be found


@dataclass(frozen=True)
class Scores:
    """Average precisions; NaN where there is nothing to be found."""

    map_40: float  # the competition's: over the 15 classes with ground truth
    map_40_findings: float  # over the 14 findings
    map_coco_101: float  # COCO's own matching (IoU >= threshold) and 101 recall points, over the 14 findings
    per_class: dict[str, float]  # all-point AP
    num_truths: dict[str, int]
    num_detections: dict[str, int]
    num_images: int


def evaluate(detections: Sequence[Detections], truths: Sequence[Truth], *, iou_threshold: float = 0.4) -> Scores:
    """Scores detections against the ground truth, joined by image_id.

    An image without detections counts. Raises InputError for an image that is unknown, given twice, or has a score or
    coordinate that is not finite.
    """
    found, wanted = flatten(detections, truths)
    matches = match_flat(found, wanted, len(truths), iou_threshold=iou_threshold)
    coco = match_flat(found, wanted, len(truths), iou_threshold=iou_threshold, coco=True)
    per_class = average_precisions(matches)
    num_detections, num_truths = np.diff(matches.starts), matches.num_truths.sum(1)
    return Scores(
        map_40=mean_over_known(per_class),
        map_40_findings=mean_over_known(per_class[:NUM_FINDINGS]),
        map_coco_101=mean_over_known(average_precisions_101(coco)[:NUM_FINDINGS]),
        per_class=dict(zip(CLASSES, per_class.tolist(), strict=True)),
        num_truths=dict(zip(CLASSES, num_truths.tolist(), strict=True)),
        num_detections=dict(zip(CLASSES, num_detections.tolist(), strict=True)),
        num_images=len(truths),
    )


def match(detections: Sequence[Detections], truths: Sequence[Truth], *, iou_threshold: float = 0.4) -> Matches:
    """Which detections are true positives. Image indices are positions in `truths`; errors as in `evaluate`."""
    found, wanted = flatten(detections, truths)
    return match_flat(found, wanted, len(truths), iou_threshold=iou_threshold)


def flatten(detections: Sequence[Detections], truths: Sequence[Truth]) -> tuple[FlatBoxes, FlatBoxes]:
    """Detections and ground truth as flat arrays with class 14 among them.

    Rows of detections keep the order of the sequence and, within an image, of its boxes, class 14 last of all.
    """
    index = image_index([truth.image_id for truth in truths], "ground truth")
    image_index([found.image_id for found in detections], "detections")
    for found in detections:
        if found.image_id not in index:
            raise InputError(f"detections of image {found.image_id!r}: the ground truth does not have this image")
    images = np.array([index[found.image_id] for found in detections], np.int64)
    confident = [(i, d.no_finding) for i, d in zip(images, detections, strict=True) if d.no_finding is not None]
    flat = _flat(
        np.repeat(images, [len(found.boxes) for found in detections]),
        [found.labels for found in detections],
        [found.boxes for found in detections],
        [found.scores for found in detections],
        np.array([i for i, _ in confident], np.int64),
        np.array([p for _, p in confident], np.float64),
    )
    normal = np.array([i for i, truth in enumerate(truths) if not len(truth.boxes)], np.int64)
    wanted = _flat(
        np.repeat(np.arange(len(truths)), [len(truth.boxes) for truth in truths]),
        [truth.labels for truth in truths],
        [truth.boxes for truth in truths],
        [np.ones(len(truth.boxes)) for truth in truths],
        normal,
        np.ones(len(normal)),
    )
    _check(flat, truths, "detections")
    _check(wanted, truths, "ground truth")
    return flat, wanted


def match_flat(
    found: FlatBoxes, wanted: FlatBoxes, num_images: int, *, iou_threshold: float = 0.4, coco: bool = False
) -> Matches:
    """Matches flat boxes; ties in score are settled by row.

    VOC: a detection belongs to the truth it overlaps most, strictly above the threshold, and is false when an earlier
    one has taken that. `coco`: it takes the best truth that is still free, at or above the threshold.
    """
    order = np.lexsort((-found.scores, found.labels))
    key_of_truth = wanted.labels * num_images + wanted.images
    truth_order = np.argsort(key_of_truth, kind="stable")
    first, last = _ranges(key_of_truth[truth_order], found.labels[order] * num_images + found.images[order], num_images)
    hit = _match_kernel()(
        found.boxes[order], wanted.boxes[truth_order], first, last, min(iou_threshold, 1 - 1e-10), coco
    )
    num_truths = np.bincount(key_of_truth, minlength=NUM_CLASSES * num_images).reshape(NUM_CLASSES, num_images)
    return Matches(
        scores=found.scores[order],
        is_true_positive=hit,
        images=found.images[order],
        rows=order,
        starts=np.searchsorted(found.labels[order], np.arange(NUM_CLASSES + 1)),
        num_truths=num_truths,
    )


def average_precisions(matches: Matches, image_weights: NDArray | None = None) -> NDArray[np.float64]:
    """All-point AP of each class: -> (15,), or (replicates, 15) for integer weights (replicates, images).

    A weight says how often an image is in a bootstrap replicate; NaN where it leaves nothing to be found.
    """
    num_images = matches.num_truths.shape[1]
    weights = np.ones((1, num_images)) if image_weights is None else np.asarray(image_weights, np.float64)
    positives = weights @ matches.num_truths.T
    values = _ap_kernel()(matches.is_true_positive, matches.images, matches.starts, positives, weights)
    return values[0] if image_weights is None else values


def average_precisions_101(matches: Matches) -> NDArray[np.float64]:
    """COCO's AP of each class, precision read off at recalls 0, 0.01 .. 1: -> (15,)."""
    values = np.full(NUM_CLASSES, np.nan)
    recalls = np.linspace(0, 1, 101)
    for label, positives in enumerate(matches.num_truths.sum(1)):
        if positives:
            hits = matches.is_true_positive[matches.starts[label] : matches.starts[label + 1]]
            recall, precision = precision_recall(hits, int(positives))
            # Beyond the last recall reached, precision is 0.
            places = np.searchsorted(recall, recalls, side="left")
            values[label] = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)[places].mean()
    return values


def precision_recall(hits: NDArray[np.bool_], num_positives: int) -> tuple[NDArray, NDArray]:
    """Recall and precision after each detection, in descending score: (n,) -> (n,), (n,)."""
    true_positives = np.cumsum(hits)
    return true_positives / num_positives, true_positives / np.arange(1, len(hits) + 1)


def mean_over_known(values: NDArray) -> float:
    """Mean over the classes that have ground truth; NaN when none has."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def image_index(image_ids: Sequence[str], what: str) -> dict[str, int]:
    """Position of each image id; raises InputError when one comes twice."""
    index = {image_id: position for position, image_id in enumerate(image_ids)}
    if len(index) < len(image_ids):
        twice = next(image_id for position, image_id in enumerate(image_ids) if index[image_id] != position)
        raise InputError(f"{what}: image {twice!r} comes twice; every image must come once")
    return index


def _flat(
    images: NDArray,
    labels: Sequence[NDArray],
    boxes: Sequence[NDArray],
    scores: Sequence[NDArray],
    whole_images: NDArray,
    whole_scores: NDArray,
) -> FlatBoxes:
    """Boxes of findings followed by the whole-image boxes of class 14."""
    n = len(whole_images)
    return FlatBoxes(
        images=np.concatenate([images, whole_images]).astype(np.int64),
        labels=np.concatenate([*labels, np.full(n, NO_FINDING)]).astype(np.int64),
        boxes=np.concatenate([*boxes, np.tile(NO_FINDING_BOX, (n, 1))]).astype(np.float64),
        scores=np.concatenate([*scores, whole_scores]).astype(np.float64),
    )


def _check(flat: FlatBoxes, truths: Sequence[Truth], what: str) -> None:
    is_bad = ~(np.isfinite(flat.boxes).all(1) & np.isfinite(flat.scores))
    is_unknown = (flat.labels < 0) | (flat.labels > NO_FINDING)
    for rows, problem in ((is_bad, "a score or coordinate is not finite"), (is_unknown, "a label is not in 0..13")):
        if rows.any():
            raise InputError(f"{what} of image {truths[flat.images[rows.argmax()]].image_id!r}: {problem}")


def _ranges(sorted_keys: NDArray, keys: NDArray, num_images: int) -> tuple[NDArray, NDArray]:
    """Rows of `sorted_keys` that equal each key: first and one past the last."""
    ends = np.concatenate([[0], np.cumsum(np.bincount(sorted_keys, minlength=NUM_CLASSES * num_images))])
    return ends[keys], ends[keys + 1]


@functools.cache
def _match_kernel() -> Callable:
    import numba  # 0.4 s: kept out of --help

    return numba.njit(cache=True)(_match)


def _match(boxes: NDArray, truths: NDArray, first: NDArray, last: NDArray, threshold: float, coco: bool) -> NDArray:
    """Verdict on each box (n, 4), in order, against rows first..last of the truths (m, 4); compiled."""
    hit = np.zeros(len(boxes), np.bool_)
    taken = np.zeros(len(truths), np.bool_)
    for row in range(len(boxes)):
        x0, y0, x1, y1 = boxes[row, 0], boxes[row, 1], boxes[row, 2], boxes[row, 3]
        best, best_iou = -1, 0.0
        for t in range(first[row], last[row]):
            if coco and taken[t]:
                continue
            width = min(x1, truths[t, 2]) - max(x0, truths[t, 0])
            height = min(y1, truths[t, 3]) - max(y0, truths[t, 1])
            if width <= 0 or height <= 0:
                continue
            shared = width * height
            truth_area = (truths[t, 2] - truths[t, 0]) * (truths[t, 3] - truths[t, 1])
            iou = shared / ((x1 - x0) * (y1 - y0) + truth_area - shared)
            # COCO gives a tie in IoU to the later truth, VOC to the earlier one.
            if iou > best_iou or (coco and iou == best_iou):
                best, best_iou = t, iou
        is_over = best_iou >= threshold if coco else best_iou > threshold
        if best >= 0 and is_over and not taken[best]:
            taken[best] = True
            hit[row] = True
    return hit


@functools.cache
def _ap_kernel() -> Callable:
    import numba

    return numba.njit(cache=True)(_all_point)


def _all_point(hits: NDArray, images: NDArray, starts: NDArray, positives: NDArray, weights: NDArray) -> NDArray:
    """All-point AP per replicate and class; compiled. An image of weight 3 stands for three equal images.

    Copies of one true positive share one precision: within the run precision rises, so that its end is its envelope.
    """
    values = np.full(positives.shape, np.nan)
    for r in range(positives.shape[0]):
        for c in range(positives.shape[1]):
            if positives[r, c] == 0:
                continue
            true_positives, seen = 0.0, 0.0
            for row in range(starts[c], starts[c + 1]):
                weight = weights[r, images[row]]
                seen += weight
                if hits[row]:
                    true_positives += weight
            area, envelope = 0.0, 0.0
            for row in range(starts[c + 1] - 1, starts[c] - 1, -1):
                weight = weights[r, images[row]]
                if weight == 0:
                    continue
                if hits[row]:
                    envelope = max(envelope, true_positives / seen)
                    area += weight * envelope
                    true_positives -= weight
                seen -= weight
            values[r, c] = area / positives[r, c]
    return values
