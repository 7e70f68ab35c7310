"""The metric on a part of the ground truth: findings that enough readers drew, or findings of one size.

The other findings are ignored, as VOC's "difficult" objects are (Everingham et al., 2010, section 4): they need not be
found, and a detection that belongs to one is neither true nor false.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from vbd.boxes import areas
from vbd.errors import InputError
from vbd.evaluation.average_precision import Scores, score_flat
from vbd.evaluation.matching import FlatBoxes, Ignored, Matches, flatten, match_flat
from vbd.labels import NO_FINDING
from vbd.records import Detections, Truth

Size = Literal["small", "medium", "large"]
SIZES: tuple[Size, ...] = get_args(Size)
LEVELS: tuple[int, ...] = (1, 2, 3)
# COCO's bounds, 32 and 96 pixels squared, as shares of an image of 512 px. Both ends belong to a range, as in COCO.
_SIDE = 512
_BOUNDS: dict[Size, tuple[float, float]] = {
    "small": (0.0, 32**2 / _SIDE**2),
    "medium": (32**2 / _SIDE**2, 96**2 / _SIDE**2),
    "large": (96**2 / _SIDE**2, np.inf),
}


def by_agreement(
    detections: Sequence[Detections],
    truths: Sequence[Truth],
    *,
    levels: Sequence[int] = LEVELS,
    iou_threshold: float = 0.4,
) -> dict[int, Scores]:
    """Scores on the findings that at least so many readers drew; level 1 is `evaluate`.

    A finding of fewer readers is ignored: it is not among those to be found, and every detection whose best overlap
    it is, above the threshold, is left out of the ranking, however many they are. A detection that overlaps nothing
    is false at every level. `map_coco_101` ignores by COCO's rule, see `matching.match_flat`.

    Class 14 is the same at every level: an image is normal when no reader drew anything. `1 - p(normal)` of an image
    with nothing but ignored findings stays right, "No finding" stays false there.

    Raises InputError as `evaluate`, and for a truth that does not say how many readers drew each box.
    """
    found, wanted = flatten(detections, truths)
    drawn = _readers(truths, len(wanted.labels))
    return {
        level: score_flat(
            found, wanted, len(truths), iou_threshold=iou_threshold, ignored=_below(drawn, level, len(found.labels))
        )
        for level in levels
    }


def match_by_agreement(
    detections: Sequence[Detections], truths: Sequence[Truth], *, level: int, iou_threshold: float = 0.4
) -> Matches:
    """Matches of `by_agreement`, for intervals and curves at one level."""
    found, wanted = flatten(detections, truths)
    ignored = _below(_readers(truths, len(wanted.labels)), level, len(found.labels))
    return match_flat(found, wanted, len(truths), iou_threshold=iou_threshold, ignored=ignored)


def by_size(
    detections: Sequence[Detections], truths: Sequence[Truth], *, iou_threshold: float = 0.4
) -> dict[Size, Scores]:
    """Scores on the small, medium and large findings, by their share of the image's area.

    The bounds are COCO's at 512 px: 32² and 96² of 512² pixels. Findings of another size are ignored, and so is a
    detection of another size that matches nothing: what is left is false because of its place and not of its size.
    `map_coco_101` is what COCO's area ranges give at this threshold. Class 14 has no size and is the same in all three,
    so that `map_40_findings` is the number to read.

    Raises InputError as `evaluate`, and for an image whose size is not known (`Truth.original_hw`).
    """
    found, wanted = flatten(detections, truths)
    image_areas = _image_areas(truths)
    shares, found_shares = (areas(flat.boxes) / image_areas[flat.images] for flat in (wanted, found))
    return {
        size: score_flat(
            found,
            wanted,
            len(truths),
            iou_threshold=iou_threshold,
            ignored=Ignored(_outside(wanted, shares, size), _outside(found, found_shares, size)),
        )
        for size in SIZES
    }


def _readers(truths: Sequence[Truth], num_rows: int) -> NDArray[np.int64]:
    """Readers of each row of the flat truths; class 14 has as many as anyone may ask for."""
    for truth in truths:
        if len(truth.readers) != len(truth.boxes):
            raise InputError(
                f"ground truth of image {truth.image_id!r}: {len(truth.readers)} numbers of readers for "
                f"{len(truth.boxes)} boxes; scores by agreement need one for each box"
            )
    readers = np.full(num_rows, np.iinfo(np.int64).max)
    drawn = np.concatenate([np.zeros(0, np.int64), *(truth.readers for truth in truths)])
    readers[: len(drawn)] = drawn
    return readers


def _below(readers: NDArray, level: int, num_found: int) -> Ignored | None:
    is_below = readers < level
    return Ignored(is_below, np.zeros(num_found, np.bool_)) if is_below.any() else None


def _image_areas(truths: Sequence[Truth]) -> NDArray[np.float64]:
    for truth in truths:
        if min(truth.original_hw) <= 0:
            raise InputError(
                f"ground truth of image {truth.image_id!r}: original_hw is {truth.original_hw}; scores by size need "
                "the height and width of every image"
            )
    return np.array([float(height) * width for height, width in (truth.original_hw for truth in truths)])


def _outside(flat: FlatBoxes, shares: NDArray, size: Size) -> NDArray[np.bool_]:
    low, high = _BOUNDS[size]
    return ((shares < low) | (shares > high)) & (flat.labels != NO_FINDING)
