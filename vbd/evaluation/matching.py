"""Which detections are true: the matching that all scores of this room are computed from.

Everingham et al., "The PASCAL Visual Object Classes (VOC) Challenge", 2010, and COCO's own rules (Lin et al., "Microsoft
COCO: Common objects in context", 2014). Box sizes are `x_max - x_min`: coordinates are continuous, without the +1 of
the old toolkit.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vbd.caches import compiled
from vbd.errors import InputError
from vbd.labels import NO_FINDING, NO_FINDING_BOX, NUM_FINDINGS, name_of
from vbd.records import Detections, Truth

NUM_CLASSES = NUM_FINDINGS + 1
CLASSES: tuple[str, ...] = tuple(name_of(label) for label in range(NUM_CLASSES))

# Verdicts on a detection. An ignored one is neither true nor false: it is left out of every count.
FALSE, TRUE, IGNORED = 0, 1, 2


@dataclass(frozen=True)
class FlatBoxes:
    """The boxes of many images, one after the other; class 14 has the box 0 0 1 1."""

    images: NDArray[np.int64]  # (n,) index of each box's image
    labels: NDArray[np.int64]  # (n,) 0..14
    boxes: NDArray[np.float64]  # (n, 4) xyxy, original pixels
    scores: NDArray[np.float64]  # (n,); of truths: 1


@dataclass(frozen=True)
class Ignored:
    """What neither counts for nor against, in the order of the flat boxes."""

    truths: NDArray[np.bool_]  # (m,) need not be found, and whoever finds them is not false
    found: NDArray[np.bool_]  # (n,) not false when they match nothing


@dataclass(frozen=True)
class Ranking:
    """Detections by class and then by descending score, equal scores as they stood."""

    rows: NDArray[np.int64]  # (n,) where each detection stood
    images: NDArray[np.int64]  # (n,) its image
    scores: NDArray[np.float64]  # (n,)
    starts: NDArray[np.int64]  # (16,) where each class begins, and the end


@dataclass(frozen=True)
class Matches:
    """Every detection with its verdict, by class and then by descending score; the bootstrap only weighs its images.

    Ignored detections are not among them, ignored truths not in `num_truths`.
    """

    scores: NDArray[np.float64]  # (n,)
    is_true_positive: NDArray[np.bool_]  # (n,)
    images: NDArray[np.int64]  # (n,) index of the image
    rows: NDArray[np.int64]  # (n,) where the detection stood in the flat input
    starts: NDArray[np.int64]  # (16,) where each class begins, and the end
    num_truths: NDArray[np.int64]  # (15, images) boxes to be found


def match(detections: Sequence[Detections], truths: Sequence[Truth], *, iou_threshold: float = 0.4) -> Matches:
    """Which detections are true positives, by VOC's rule. Image indices are positions in `truths`.

    Errors as in `average_precision.evaluate`.
    """
    found, wanted = flatten(detections, truths)
    return match_flat(found, wanted, len(truths), iou_threshold=iou_threshold)


def match_flat(
    found: FlatBoxes,
    wanted: FlatBoxes,
    num_images: int,
    *,
    iou_threshold: float = 0.4,
    coco: bool = False,
    ignored: Ignored | None = None,
) -> Matches:
    """Matches flat boxes; ties in score are settled by row.

    VOC: a detection belongs to the truth it overlaps most, strictly above the threshold, and is false when an earlier
    one has taken that. `coco`: it takes the best truth that is still free, at or above the threshold. Truths that are
    `ignored` differ as well: VOC ignores every detection that belongs to one, COCO prefers the other truths and lets
    each ignored one be taken once.
    """
    ranking = rank(found)
    verdicts = judge(found, wanted, num_images, ranking, iou_threshold=iou_threshold, coco=coco, ignored=ignored)
    return assemble(ranking, verdicts, count_truths(wanted, num_images, ignored))


def rank(found: FlatBoxes) -> Ranking:
    """The order in which detections are matched and scored."""
    # Bits of a float sort as integers once the sign is taken care of; subtracting from 0 turns -0 into 0.
    bits = (0.0 - found.scores).view(np.int64)
    keys = np.where(bits < 0, ~bits, bits | np.int64(-(2**63))).view(np.uint64)
    rows = _rank_kernel()(keys, found.labels)
    counts = np.bincount(found.labels, minlength=NUM_CLASSES)
    return Ranking(rows, found.images[rows], found.scores[rows], np.concatenate([[0], np.cumsum(counts)]))


def judge(
    found: FlatBoxes,
    wanted: FlatBoxes,
    num_images: int,
    ranking: Ranking,
    *,
    iou_threshold: float,
    coco: bool,
    ignored: Ignored | None = None,
) -> NDArray[np.int8]:
    """A verdict on each detection, by rank: -> (n,) of FALSE, TRUE and IGNORED."""
    keys = wanted.labels * num_images + wanted.images
    if ignored is None:
        is_ignored, is_outside = np.zeros(len(keys), np.bool_), np.zeros(0, np.bool_)
    else:
        is_ignored, is_outside = ignored.truths, ignored.found
    # COCO looks at the ignored truths last, VOC at all of them in their own order.
    truth_order = np.lexsort((is_ignored, keys)) if coco else np.argsort(keys, kind="stable")
    ends = np.concatenate([[0], np.cumsum(np.bincount(keys, minlength=NUM_CLASSES * num_images))])
    detections = ranking.rows, ranking.images, ranking.starts, found.boxes
    truths = wanted.boxes[truth_order], is_ignored[truth_order], ends
    return _judge_kernel()(*detections, *truths, num_images, float(iou_threshold), is_outside, coco)


def count_truths(wanted: FlatBoxes, num_images: int, ignored: Ignored | None = None) -> NDArray[np.int64]:
    """Boxes to be found, by class and image: -> (15, images)."""
    keys = wanted.labels * num_images + wanted.images
    if ignored is not None:
        keys = keys[~ignored.truths]
    return np.bincount(keys, minlength=NUM_CLASSES * num_images).reshape(NUM_CLASSES, num_images)


def assemble(ranking: Ranking, verdicts: NDArray[np.int8], num_truths: NDArray[np.int64]) -> Matches:
    """The detections that count, by rank, with the verdicts on them."""
    if (verdicts == IGNORED).any():
        kept = verdicts != IGNORED
        before = np.append(0, np.cumsum(kept))
        ranking = Ranking(ranking.rows[kept], ranking.images[kept], ranking.scores[kept], before[ranking.starts])
        verdicts = verdicts[kept]
    return Matches(
        scores=ranking.scores,
        is_true_positive=verdicts == TRUE,
        images=ranking.images,
        rows=ranking.rows,
        starts=ranking.starts,
        num_truths=num_truths,
    )


# ------------------------------------------------------------------------------------------------------------- flat


def flatten(detections: Sequence[Detections], truths: Sequence[Truth]) -> tuple[FlatBoxes, FlatBoxes]:
    """Detections and ground truth as flat arrays with class 14 among them.

    Rows keep the order of the sequence and, within an image, of its boxes, class 14 last of all.
    """
    index = image_index([truth.image_id for truth in truths], "ground truth")
    ids = [found.image_id for found in detections]
    image_index(ids, "detections")
    unknown = next((image_id for image_id in ids if image_id not in index), None)
    if unknown is not None:
        raise InputError(f"detections of image {unknown!r}: the ground truth does not have this image")
    images = np.array([index[image_id] for image_id in ids], np.int64)
    confident = [place for place, found in enumerate(detections) if found.no_finding is not None]
    flat = _flat(
        np.repeat(images, [len(found.scores) for found in detections]),
        [found.labels for found in detections],
        [found.boxes for found in detections],
        [found.scores for found in detections],
        images[confident],
        np.array([detections[place].no_finding for place in confident], np.float64),
    )
    counts = np.array([len(truth.labels) for truth in truths], np.int64)
    normal = np.flatnonzero(counts == 0)
    wanted = _flat(
        np.repeat(np.arange(len(truths)), counts),
        [truth.labels for truth in truths],
        [truth.boxes for truth in truths],
        [np.ones(counts.sum())],
        normal,
        np.ones(len(normal)),
    )
    _check(flat, len(flat.labels) - len(confident), truths, "detections")
    _check(wanted, int(counts.sum()), truths, "ground truth")
    return flat, wanted


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
        images=np.concatenate([images, whole_images]).astype(np.int64, copy=False),
        labels=np.concatenate([*labels, np.full(n, NO_FINDING)]).astype(np.int64, copy=False),
        boxes=np.concatenate([*boxes, np.tile(NO_FINDING_BOX, (n, 1))]).astype(np.float64, copy=False),
        scores=np.concatenate([*scores, whole_scores]).astype(np.float64, copy=False),
    )


def _check(flat: FlatBoxes, num_findings: int, truths: Sequence[Truth], what: str) -> None:
    """Raises InputError for a number that is not finite and for a label that is no finding's."""
    labels = flat.labels[:num_findings]
    # Looking at rows one by one takes a third of the time of flattening: only where something is wrong.
    if not (np.isfinite(flat.boxes).all() and np.isfinite(flat.scores).all()):
        row = int((~np.isfinite(flat.boxes).all(1) | ~np.isfinite(flat.scores)).argmax())
        raise InputError(f"{what} of image {truths[flat.images[row]].image_id!r}: a score or coordinate is not finite")
    if num_findings and (labels.min() < 0 or labels.max() >= NUM_FINDINGS):
        row = int(((labels < 0) | (labels >= NUM_FINDINGS)).argmax())
        raise InputError(f"{what} of image {truths[flat.images[row]].image_id!r}: a label is not in 0..13")


# ---------------------------------------------------------------------------------------------------------- compiled


@functools.cache
def _rank_kernel() -> Callable:
    return compiled(_rank)


@functools.cache
def _judge_kernel() -> Callable:
    return compiled(_judge)


def _rank(keys: NDArray, labels: NDArray) -> NDArray:
    """Radix sort of uint64 keys in six digits, then by label; a digit that all share is passed over."""
    n, digits, base = len(keys), 6, 2048
    counts = np.zeros((digits + 1, base), np.int64)
    for row in range(n):
        for digit in range(digits):
            counts[digit, (keys[row] >> np.uint64(11 * digit)) & np.uint64(base - 1)] += 1
        counts[digits, labels[row]] += 1
    rows, sorted_rows = np.arange(n), np.empty(n, np.int64)
    for digit in range(digits + 1):
        if counts[digit].max() == n:
            continue
        place = np.cumsum(counts[digit]) - counts[digit]
        for at in rows:
            value = labels[at]
            if digit < digits:
                value = np.int64((keys[at] >> np.uint64(11 * digit)) & np.uint64(base - 1))
            sorted_rows[place[value]] = at
            place[value] += 1
        rows, sorted_rows = sorted_rows, rows
    return rows


def _judge(
    rows: NDArray,
    images: NDArray,
    starts: NDArray,
    boxes: NDArray,
    truths: NDArray,
    is_ignored: NDArray,
    ends: NDArray,
    num_images: int,
    threshold: float,
    is_outside: NDArray,
    coco: bool,
) -> NDArray:
    """Verdicts by VOC's or by COCO's rule; truths of class c in image i are rows ends[k] to ends[k + 1] with
    k = c * images + i, for COCO's rule the ignored ones last among them.
    """
    verdicts = np.zeros(len(rows), np.int8)
    taken = np.zeros(len(truths), np.bool_)
    label = 0
    for place in range(len(rows)):
        while place == starts[label + 1]:
            label += 1
        row, key = rows[place], label * num_images + images[place]
        best, best_iou = -1, threshold
        for t in range(ends[key], ends[key + 1]):
            if coco:  # VOC looks at all truths, whether they are still free or not
                if taken[t]:
                    continue
                if best >= 0 and is_ignored[t] and not is_ignored[best]:
                    break
            width = min(boxes[row, 2], truths[t, 2]) - max(boxes[row, 0], truths[t, 0])
            height = min(boxes[row, 3], truths[t, 3]) - max(boxes[row, 1], truths[t, 1])
            if width <= 0 or height <= 0:
                continue
            area = (boxes[row, 2] - boxes[row, 0]) * (boxes[row, 3] - boxes[row, 1])
            truth_area = (truths[t, 2] - truths[t, 0]) * (truths[t, 3] - truths[t, 1])
            iou = width * height / (area + truth_area - width * height)
            if iou >= best_iou and (coco or iou > best_iou):  # a tie: the later truth wins by COCO, the earlier by VOC
                best, best_iou = t, iou
        if best >= 0:
            if is_ignored[best]:
                verdicts[place] = 2
                taken[best] = True
            elif not taken[best]:
                verdicts[place] = 1
                taken[best] = True
        elif len(is_outside) and is_outside[row]:
            verdicts[place] = 2
    return verdicts
