"""The compiled loops of `fusing` and `suppression`; imported where they are called, since numba takes 0.4 s to load.

All take boxes (n, 4) and scores (n,) as they stand, `order` (k,) the rows that take part, group by group, `starts` (groups + 1,)
where each group begins in `order`, and `thresholds` (groups,) of overlap.
"""

import numpy as np
from numpy.typing import NDArray

from vbd.caches import compiled

# Runs of so many rows are sorted by insertion, and longer ones merged of such.
_RUN = 16


@compiled
def _iou(first: NDArray, second: NDArray) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    first_area = (first[2] - first[0]) * (first[3] - first[1])
    second_area = (second[2] - second[0]) * (second[3] - second[1])
    return shared / (first_area + second_area - shared)


# ----------------------------------------------------------------------------------------------------------- sorting


@compiled
def usable(boxes: NDArray, scores: NDArray) -> NDArray:
    """Whether each box is finite, has an area and a finite score: (n,)."""
    result = np.empty(len(scores), np.bool_)
    for row in range(len(scores)):
        width, height = boxes[row, 2] - boxes[row, 0], boxes[row, 3] - boxes[row, 1]
        # The width of an infinite box is infinite or not a number.
        result[row] = width > 0 and height > 0 and np.isfinite(width + height) and np.isfinite(scores[row])
    return result


@compiled
def sort_groups(
    boxes: NDArray, scores: NDArray, models: NDArray, keys: NDArray, keep: NDArray, num_keys: int
) -> tuple[NDArray, NDArray]:
    """Rows that are kept, by key, descending score, model and coordinates; and where each key begins.

    keys (n,) in 0..num_keys-1, keep (n,) bool; -> (k,), (keys that occur + 1,). Rows equal in everything stay as they stood.
    """
    ends = np.zeros(num_keys + 1, np.int64)
    for row in range(len(keys)):
        ends[keys[row] + 1] += keep[row]
    places = np.empty(num_keys, np.int64)
    for key in range(num_keys):
        places[key] = ends[key]
        ends[key + 1] += ends[key]
    order = np.empty(ends[num_keys], np.int64)
    for row in range(len(keys)):
        if keep[row]:
            order[places[keys[row]]] = row
            places[keys[row]] += 1
    starts, groups = np.zeros(min(num_keys, len(order)) + 1, np.int64), 0
    spare = np.empty(len(order), np.int64)
    for key in range(num_keys):
        if ends[key + 1] > ends[key]:
            _sort(order, spare, ends[key], ends[key + 1], boxes, scores, models)
            groups += 1
            starts[groups] = ends[key + 1]
    return order, starts[: groups + 1]


@compiled
def _sort(
    order: NDArray, spare: NDArray, start: int, end: int, boxes: NDArray, scores: NDArray, models: NDArray
) -> None:
    """Sorts order[start:end] in place; stable."""
    low = start
    while low < end:
        for place in range(low + 1, min(low + _RUN, end)):
            row, hole = order[place], place
            while hole > low and _precedes(row, order[hole - 1], boxes, scores, models):
                order[hole] = order[hole - 1]
                hole -= 1
            order[hole] = row
        low += _RUN
    size = _RUN
    while size < end - start:
        low = start
        while low < end:
            _merge(order, spare, low, min(low + size, end), min(low + 2 * size, end), boxes, scores, models)
            low += 2 * size
        for place in range(start, end):
            order[place] = spare[place]
        size *= 2


@compiled
def _merge(
    order: NDArray,
    spare: NDArray,
    start: int,
    middle: int,
    end: int,
    boxes: NDArray,
    scores: NDArray,
    models: NDArray,
) -> None:
    """order[start:middle] and order[middle:end], each sorted, to spare[start:end]."""
    left, right = start, middle
    for place in range(start, end):
        if left < middle and (right == end or not _precedes(order[right], order[left], boxes, scores, models)):
            spare[place] = order[left]
            left += 1
        else:
            spare[place] = order[right]
            right += 1


@compiled
def _precedes(row: int, other: int, boxes: NDArray, scores: NDArray, models: NDArray) -> bool:
    if scores[row] != scores[other]:
        return bool(scores[row] > scores[other])
    if models[row] != models[other]:
        return bool(models[row] < models[other])
    for k in range(4):
        if boxes[row, k] != boxes[other, k]:
            return bool(boxes[row, k] < boxes[other, k])
    return False


# ----------------------------------------------------------------------------------------------- weighted box fusion


@compiled
def cluster(
    boxes: NDArray,
    scores: NDArray,
    models: NDArray,
    order: NDArray,
    starts: NDArray,
    thresholds: NDArray,
    weights: NDArray,
) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """The loop of the paper: each row joins the running mean that it overlaps most, or founds a cluster.

    Returns per cluster its box, its sums (m, 5), its first row; and per row of `order` its cluster. The sums: weighted scores,
    their maximum, number of boxes, weights of the boxes, weights of the different models.
    """
    n = len(order)
    fused, moment, sums = np.empty((n, 4)), np.zeros((n, 4)), np.zeros((n, 5))
    first_rows, cluster_of_row = np.empty(n, np.int64), np.empty(n, np.int64)
    # 1 + the group in which a model was last in the group's c-th cluster
    last_group = np.zeros((_longest(starts), len(weights)), np.int64)
    used = 0
    for g in range(len(starts) - 1):
        base = used
        for place in range(starts[g], starts[g + 1]):
            row = order[place]
            score, model = scores[row], models[row]
            best = _most_overlapping(fused, base, used, boxes[row], thresholds[g])
            if best < 0:
                best = used
                used += 1
                first_rows[best] = row
                for k in range(4):
                    fused[best, k] = boxes[row, k]
            cluster_of_row[place] = best
            sums[best, 0] += score
            sums[best, 1] = max(sums[best, 1], score)
            sums[best, 2] += 1
            sums[best, 3] += weights[model]
            if last_group[best - base, model] <= g:
                last_group[best - base, model] = g + 1
                sums[best, 4] += weights[model]
            for k in range(4):
                moment[best, k] += score * boxes[row, k]
                # A lone box stays exact; a cluster without any confidence keeps its first box.
                if sums[best, 2] > 1 and sums[best, 0] > 0:
                    fused[best, k] = moment[best, k] / sums[best, 0]
    return fused[:used], sums[:used], first_rows[:used], cluster_of_row


@compiled
def _longest(starts: NDArray) -> int:
    longest = 0
    for g in range(len(starts) - 1):
        longest = max(longest, starts[g + 1] - starts[g])
    return longest


@compiled
def _most_overlapping(others: NDArray, start: int, end: int, box: NDArray, threshold: float) -> int:
    """Which of others[start:end] the box overlaps most, the earliest of equals; -1 when none by more than the threshold."""
    best, best_iou = -1, threshold
    for other in range(start, end):
        iou = _iou(box, others[other])
        if iou > best_iou:
            best, best_iou = other, iou
    return best


# ------------------------------------------------------------------------------------------------- the other rules


@compiled
def found(
    boxes: NDArray, scores: NDArray, order: NDArray, starts: NDArray, thresholds: NDArray
) -> tuple[NDArray, NDArray, NDArray]:
    """Groups each row with the founder it overlaps most, or makes it a founder.

    Returns groups' means weighted by score x IoU with the founder (m, 4), founders' rows (m,), each row's group (k,).
    """
    n = len(order)
    founders, first_rows, group_of_row = np.empty((n, 4)), np.empty(n, np.int64), np.empty(n, np.int64)
    moment, total = np.zeros((n, 4)), np.zeros(n)
    used = 0
    for g in range(len(starts) - 1):
        base = used
        for place in range(starts[g], starts[g + 1]):
            row = order[place]
            best = _most_overlapping(founders, base, used, boxes[row], thresholds[g])
            if best < 0:
                best = used
                used += 1
                for k in range(4):
                    founders[best, k] = boxes[row, k]
                first_rows[best] = row
            group_of_row[place] = best
            share = scores[row] * _iou(boxes[row], founders[best])
            total[best] += share
            for k in range(4):
                moment[best, k] += share * boxes[row, k]
    for c in range(used):
        for k in range(4):
            # A group without any confidence keeps its founder.
            moment[c, k] = moment[c, k] / total[c] if total[c] > 0 else founders[c, k]
    return moment[:used], first_rows[:used], group_of_row


@compiled
def soften(
    boxes: NDArray, scores: NDArray, order: NDArray, starts: NDArray, thresholds: NDArray, sigma: float
) -> NDArray:
    """Scores after decay, as `order` stands: gaussian for a `sigma` above 0, linear for 0."""
    decayed = np.empty(len(order))
    for place in range(len(order)):
        decayed[place] = scores[order[place]]
    done = np.zeros(len(order), np.bool_)
    for g in range(len(starts) - 1):
        for _ in range(starts[g], starts[g + 1]):
            best = -1
            for place in range(starts[g], starts[g + 1]):
                if not done[place] and (best < 0 or decayed[place] > decayed[best]):
                    best = place
            done[best] = True
            for place in range(starts[g], starts[g + 1]):
                if done[place]:
                    continue
                iou = _iou(boxes[order[best]], boxes[order[place]])
                if sigma > 0:
                    decayed[place] *= np.exp(-iou * iou / sigma)
                elif iou > thresholds[g]:
                    decayed[place] *= 1 - iou
    return decayed


@compiled
def link(boxes: NDArray, order: NDArray, starts: NDArray, threshold: float) -> tuple[NDArray, NDArray]:
    """Each row's connected component (k,), counted from 0, and the first row of each (m,)."""
    n = len(order)
    component, first_rows, pending = np.full(n, -1), np.empty(n, np.int64), np.empty(n, np.int64)
    used = 0
    for g in range(len(starts) - 1):
        for founder in range(starts[g], starts[g + 1]):
            if component[founder] >= 0:
                continue
            component[founder] = used
            first_rows[used] = order[founder]
            pending[0], waiting = founder, 1
            while waiting > 0:
                waiting -= 1
                place = pending[waiting]
                for other in range(starts[g], starts[g + 1]):
                    if component[other] < 0 and _iou(boxes[order[place]], boxes[order[other]]) > threshold:
                        component[other] = used
                        pending[waiting] = other
                        waiting += 1
            used += 1
    return component, first_rows[:used]
