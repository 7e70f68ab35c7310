"""What a whole submission betrays where no single row is wrong: boxes of resized images, scores that order nothing.

These are inferences, made to raise no alarm on a good file; `submission_check` holds what is certain.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vbd.submission.check import Defect, Sheet, sizes_of

# Sides that images are resized to; 1 is for boxes that are shares of the image.
_SIDES = (1, 128, 256, 320, 384, 416, 512, 640, 768, 896, 1024, 1280, 1536, 2048)
_INSIDE = 0.99  # share of the boxes that a side must hold
_TOLERANCE = 1.002  # boxes may reach a rounding error beyond
# Evidence, natural logarithm: that boxes of original pixels all lie there by chance is less likely than 1 in 10 million.
_EVIDENCE = 16.0
_MIN_BOXES, _MIN_ROWS, _MIN_SPAN, _MAX_SHARE = 8, 4, 0.6, 0.2  # of a single row to be told from the others
_MIN_SPREAD = 0.5  # of the boxes' middles from left to right: those of one lung lie closer
_OFF_MIDDLE = 0.12  # how far from the middle the boxes of the prepared images may lie
_MIN_EQUAL = 10  # as many equal scores are no chance
_MIN_IMAGES, _MIN_CORRELATION, _MIN_Z = 20, 0.3, 3.5


@dataclass(frozen=True)
class Resized:
    """Rows whose boxes look like pixels of an image of `side` x `side`."""

    side: int
    numbers: frozenset[int]  # of the rows' lines in the file
    whole_file: bool  # whether all rows with boxes are meant


@dataclass(frozen=True)
class _Reach:
    """The findings of a sheet and, for each line that has some, where they reach to."""

    boxes: NDArray[np.float64]  # (n, 4)
    size: NDArray[np.float64]  # (n, 2) width and height of each box's image
    lines: NDArray[np.int64]  # (m,) lines with findings
    counts: NDArray[np.int64]  # (m,)
    low: NDArray[np.float64]  # (m, 2) least x and y
    high: NDArray[np.float64]  # (m, 2) greatest x and y
    line_size: NDArray[np.float64]  # (m, 2)
    place: NDArray[np.int64]  # (n,) index of each box into `lines`


def find_resized(
    sheet: Sheet, original_hw: Mapping[str, tuple[int, int]], *, prepared_side: int | None = None
) -> Resized | None:
    """The side of the resized images that boxes are in pixels of; None when they look like original pixels.

    `prepared_side` is the likeliest one. For all rows, nearly all boxes must lie within side x side though the originals
    are larger, in so many images that chance is out of the question; left and right lung must be more alike about the
    middle of the resized image than about that of the original; and boxes must not lie the farther out the larger the
    original is. For some of the rows, each must fill the resized image alike, and they must be many more than chance makes.
    """
    reach = _reach(sheet, original_hw)
    if not len(reach.lines):
        return None
    sides = sorted({*_SIDES, *([prepared_side] if prepared_side else [])})
    sides = [side for side in sides if _may_be(reach, side)]
    if not sides:
        return _find_some(sheet, reach, prepared_side)
    side = _likeliest(reach, sides, prepared_side)
    return Resized(side, _numbers(sheet, reach.lines[(reach.line_size != side).any(1)]), True)


def find_equal_scores(sheet: Sheet) -> list[Defect]:
    """Findings, or images, that all have one and the same confidence: nothing is ordered then."""
    defects = []
    finding, whole = sheet.is_finding, sheet.is_whole
    scores, lines = sheet.values[finding, 1], np.unique(sheet.line_of[finding])
    mend = "write what the model says, unrounded and without a threshold: the order is all that counts"
    if len(scores) >= _MIN_EQUAL and len(lines) > 1 and len(np.unique(scores)) == 1:
        defects.append(Defect("scores_equal", 0, "", f"all {len(scores):,} boxes have the score {scores[0]:g}", mend))
    confidences, images = sheet.values[whole, 1], len(np.unique(sheet.line_of[whole]))
    # A row that says 1 beside rows that say nothing is an order too.
    if len(lines) and images == len(sheet.lines) >= _MIN_EQUAL and len(np.unique(confidences)) == 1:
        problem = f"class 14 has the confidence {confidences[0]:g} in every row"
        defects.append(Defect("whole_image_equal", 0, "", problem, "write p = P(normal) of each image"))
    return defects


def find_reversed_whole(sheet: Sheet) -> list[Defect]:
    """Class 14 whose confidence rises with the number and score of the boxes, which make an image abnormal."""
    rows, p = whole_confidence(sheet)
    finding = sheet.is_finding
    line_of, scores = sheet.line_of[finding], sheet.values[finding, 1]
    best, summed = np.zeros(len(sheet.lines)), np.zeros(len(sheet.lines))
    np.maximum.at(best, line_of, scores)
    np.add.at(summed, line_of, scores)
    if len(rows) < _MIN_IMAGES:
        return []
    correlation = max(_rank_correlation(p, best[rows]), _rank_correlation(p, summed[rows]), key=abs)
    if correlation < _MIN_CORRELATION or correlation * np.sqrt(len(rows) - 1) < _MIN_Z:
        return []
    problem = f"class 14 rises with the scores of the boxes beside it (rank correlation {correlation:+.2f})"
    return [Defect("whole_image_reversed", 0, "", problem, REVERSED_MEND)]


REVERSED_MEND = "p is P(normal), not P(abnormal): write 1 - p"


def whole_confidence(sheet: Sheet) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The lines that predict class 14, and the highest confidence of each."""
    whole = sheet.is_whole
    rows, first = np.unique(sheet.line_of[whole], return_index=True)
    return rows, np.maximum.reduceat(sheet.values[whole, 1], first) if len(rows) else np.zeros(0)


def _rank_correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Spearman's, 0 where one of them is constant: (n,), (n,) -> number."""
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(np.corrcoef(ranks(first), ranks(second))[0, 1])


def ranks(values: NDArray) -> NDArray[np.float64]:
    """Ranks from 0, equal values sharing the mean of theirs: (n,) -> (n,)."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[place]


def resized_defects(sheet: Sheet, resized: Resized | None, original_hw: Mapping[str, tuple[int, int]]) -> list[Defect]:
    """A defect for each row whose boxes are of a resized image."""
    if resized is None:
        return []
    side, defects = resized.side, []
    for line in (line for line in sheet.lines if line.number in resized.numbers):
        height, width = original_hw[line.image_id]
        problem = (
            "boxes look like shares of the image, 0 to 1"
            if side == 1
            else f"boxes look like pixels of a {side} x {side} image"
        )
        problem += f"; the original has {width} x {height}"
        mend = f"multiply x by {width / side:.4g} and y by {height / side:.4g}"
        defects.append(Defect("resized", line.number, line.image_id, problem, mend))
    return defects


def without_explained(defects: Sequence[Defect], resized: Resized | None) -> list[Defect]:
    """The defects without those that mending the scale mends as well: shares as one pixel, an original smaller than the side."""
    if resized is None:
        return list(defects)
    kinds = {"outside_image", *(("one_pixel",) if resized.side == 1 else ())}
    return [defect for defect in defects if defect.kind not in kinds or defect.line not in resized.numbers]


def _reach(sheet: Sheet, original_hw: Mapping[str, tuple[int, int]]) -> _Reach:
    sizes = sizes_of(sheet, original_hw)[:, ::-1]
    usable = np.flatnonzero(sheet.is_finding & np.isfinite(sizes[sheet.line_of]).all(1))
    boxes, line_of = sheet.boxes[usable], sheet.line_of[usable]
    lines, first, place, counts = np.unique(line_of, return_index=True, return_inverse=True, return_counts=True)
    low = np.minimum.reduceat(boxes[:, :2], first) if len(first) else np.zeros((0, 2))
    high = np.maximum.reduceat(boxes[:, 2:], first) if len(first) else np.zeros((0, 2))
    return _Reach(boxes, sizes[line_of], lines, counts, low, high, sizes[lines], place)


def _is_inside(corners: NDArray[np.float64], side: int) -> NDArray[np.bool_]:
    return np.asarray((corners <= side * _TOLERANCE).all(1))


def _share_inside(reach: _Reach, side: int) -> float:
    return float(_is_inside(reach.boxes[:, 2:], side).mean())


def _share(line_size: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """The share of each original that side x side pixels cover: about how likely a corner lies there by chance."""
    return np.minimum(1.0, side / line_size).prod(1)


def _may_be(reach: _Reach, side: int) -> bool:
    """Whether all boxes look like pixels of side x side."""
    if _share_inside(reach, side) < _INSIDE:
        return False
    inside = _is_inside(reach.high, side)
    if -np.log(_share(reach.line_size[inside], side)).sum() < _EVIDENCE:
        return False
    larger = (_share(reach.line_size, side) < 0.64)[reach.place]
    if not larger.any():
        return False
    centres = reach.boxes[larger][:, [0, 2]].mean(1)
    of_side, of_original = np.median(centres / side), np.median(centres / reach.size[larger, 0])
    spread = np.ptp(np.quantile(centres / side, [0.05, 0.95]))
    nearer = abs(of_side - 0.5) < abs(of_original - 0.5)
    return bool(nearer and spread >= _MIN_SPREAD) and not _grows_with_image(reach)


def _grows_with_image(reach: _Reach) -> bool:
    """Whether boxes lie the farther out the larger their image is, as those of originals do.

    The slope of the logarithms, over both axes, is about 1 for them and 0 for those of resized images.
    """
    middles = np.log(np.maximum((reach.low + reach.high) / 2, 1e-6)).mean(1)
    places, sizes = (each - each.mean() for each in (middles, np.log(reach.line_size).mean(1)))
    variation = float((sizes**2).sum())
    if variation == 0 or len(sizes) < 3:
        return False
    slope = float((sizes * places).sum()) / variation
    error = np.sqrt(((places - slope * sizes) ** 2).sum() / (len(sizes) - 2) / variation)
    return bool(slope - 2 * error > 0.3)


def _likeliest(reach: _Reach, sides: Sequence[int], prepared_side: int | None) -> int:
    """One of the sides that may be: where boxes are cut, else the prepared one, else the one whose middle they lie about."""
    for side in sides:
        if (np.abs(reach.boxes[:, 2:] - side) <= side * (_TOLERANCE - 1)).sum() >= 3:
            return side
    near = [side for side in sides if side <= 2 * sides[0]]
    middle = float(np.median(reach.boxes[:, [0, 2]].mean(1)))
    if prepared_side in near and abs(middle / prepared_side - 0.5) <= _OFF_MIDDLE:
        return prepared_side
    return min(near, key=lambda side: abs(middle / side - 0.5))


def _numbers(sheet: Sheet, rows: NDArray[np.int64]) -> frozenset[int]:
    return frozenset(sheet.lines[row].number for row in rows)


def _find_some(sheet: Sheet, reach: _Reach, prepared_side: int | None) -> Resized | None:
    """The rows that differ from the others: each fills side x side about its middle, though its original is larger."""
    best: Resized | None = None
    for side in dict.fromkeys((*([prepared_side] if prepared_side else []), *_SIDES)):
        share = _share(reach.line_size, side)
        eligible = (reach.counts >= _MIN_BOXES) & (share <= _MAX_SHARE)
        spans, middles = (reach.high - reach.low) / side, (reach.high + reach.low) / 2 / side
        inside = eligible & _is_inside(reach.high, side)
        fills = inside & (spans >= _MIN_SPAN).all(1) & (np.abs(middles - 0.5) <= 0.2).all(1)
        # The boxes of an image lie about a few places: three of them by chance.
        if fills.sum() < max(_MIN_ROWS, 10 * (share[eligible] ** 3).sum()):
            continue
        # Where some rows are of that side beyond doubt, others that fill it less well are so too.
        chosen = inside & (spans >= 0.4).all(1) & (np.abs(middles - 0.5) <= 0.3).all(1)
        if best is None or chosen.sum() > len(best.numbers):
            best = Resized(side, _numbers(sheet, reach.lines[chosen]), False)
    return best
