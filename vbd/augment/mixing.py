"""Pictures made of several: mosaic, cutmix, mixup. All pictures have one shape; the result keeps the first one's id."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vbd.augment.geometry import cut, still_visible
from vbd.boxes import Boxes, areas
from vbd.records import Row

# How far the centre of a mosaic may lie from the middle, in sides of the picture.
MOSAIC_REACH = 0.25
# The smallest and the largest side of a cutmix patch, in sides of the picture.
CUTMIX_SIDES = (0.2, 0.7)
# Beta distribution of mixup's weights: close to one half, so that both pictures' findings stay visible.
MIXUP_BETA = 32.0


def mosaic(rows: Sequence[Row], *, strength: float, rng: np.random.Generator) -> Row:
    """Four pictures around a random centre (Bochkovskiy et al. 2020, YOLOv4), each scaled to cover its quarter.

    Scaling keeps the proportions; what stands out of the quarter is cut off at a random place. `strength` 0..1 is how
    far the centre may leave the middle.
    """
    first = rows[0]
    side = first["image"].shape[0]
    reach = MOSAIC_REACH * strength * side
    centre_x, centre_y = (round(side / 2 + offset) for offset in rng.uniform(-reach, reach, size=2))
    columns, lines = ((0, centre_x), (centre_x, side)), ((0, centre_y), (centre_y, side))
    quarters = [(x_min, y_min, x_max, y_max) for y_min, y_max in lines for x_min, x_max in columns]
    image = np.empty_like(first["image"])
    placed = []
    # In a random order, so that a finding is not tied to the quarter of the row it came with.
    for row, corner in zip(rows, rng.permutation(len(quarters)), strict=True):
        placed.append(_place(row, quarters[corner], canvas=image, rng=rng))
    return _joined(first, image, placed)


def cutmix(row: Row, partner: Row, *, strength: float, rng: np.random.Generator) -> Row:
    """A rectangle of the partner pasted at its own place (Yun et al. 2019, CutMix), with the boxes that lie in it.

    Boxes of `row` that the rectangle mostly covers go; others are trimmed to what is left of them. `strength` 0..1 is
    how large the rectangle may be.
    """
    height, width = row["image"].shape[:2]
    smallest, largest = CUTMIX_SIDES
    shares = rng.uniform(smallest, smallest + strength * (largest - smallest), size=2)
    patch_width, patch_height = max(1, round(shares[0] * width)), max(1, round(shares[1] * height))
    left, top = int(rng.integers(width - patch_width + 1)), int(rng.integers(height - patch_height + 1))
    patch = (left, top, left + patch_width, top + patch_height)
    area = np.s_[top : patch[3], left : patch[2]]
    image = row["image"].copy()
    image[area] = partner["image"][area]
    uncovered, visible = _outside(row["boxes"], patch)
    pasted, inside = cut(partner["boxes"], patch)
    return _joined(row, image, [_parts(row, uncovered, visible), _parts(partner, pasted, inside)])


def mixup(row: Row, partner: Row, *, rng: np.random.Generator) -> Row:
    """Two pictures blended about half and half, with the boxes of both (Zhang et al. 2018; for detection 2019)."""
    import cv2

    weight = float(rng.beta(MIXUP_BETA, MIXUP_BETA))
    image = cv2.addWeighted(row["image"], weight, partner["image"], 1 - weight, 0)
    everything = [_parts(each, each["boxes"], np.ones(len(each["boxes"]), bool)) for each in (row, partner)]
    return _joined(row, image, everything)


# Boxes, labels, readers of one source of a mixed picture.
_Parts = tuple[Boxes, NDArray[np.int64], NDArray[np.int64]]


def _parts(row: Row, boxes_xyxy: Boxes, keep: NDArray[np.bool_]) -> _Parts:
    return boxes_xyxy[keep], row["labels"][keep], row["readers"][keep]


def _joined(row: Row, image: NDArray[np.uint8], parts: Sequence[_Parts]) -> Row:
    boxes, labels, readers = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return row | {"image": image, "boxes": boxes.astype(np.float32), "labels": labels, "readers": readers}


def _place(
    row: Row, quarter: tuple[int, int, int, int], *, canvas: NDArray[np.uint8], rng: np.random.Generator
) -> _Parts:
    """Paints a picture, scaled and cropped, into its quarter of a canvas of our own; returns the boxes seen there."""
    import cv2

    x_min, y_min, x_max, y_max = quarter
    side = max(x_max - x_min, y_max - y_min)
    scaled = cv2.resize(row["image"], (side, side), interpolation=cv2.INTER_AREA)
    left, top = int(rng.integers(side - (x_max - x_min) + 1)), int(rng.integers(side - (y_max - y_min) + 1))
    canvas[y_min:y_max, x_min:x_max] = scaled[top : top + y_max - y_min, left : left + x_max - x_min]
    offset = np.array([x_min - left, y_min - top], np.float32)
    boxes, keep = cut(row["boxes"] * np.float32(side / row["image"].shape[0]) + np.tile(offset, 2), quarter)
    return _parts(row, boxes, keep)


def _outside(boxes_xyxy: Boxes, patch: tuple[int, int, int, int]) -> tuple[Boxes, NDArray[np.bool_]]:
    """The smallest boxes around what a patch leaves uncovered, (n, 4), and which still show their finding, (n,)."""
    covered, _ = cut(boxes_xyxy, patch)
    left = boxes_xyxy.copy()
    for axis in (0, 1):
        near, far, across = axis, axis + 2, 1 - axis
        # Only a patch that spans the whole box the other way moves an edge; otherwise the box shows beside the patch.
        spans = (patch[across] <= boxes_xyxy[:, across]) & (patch[across + 2] >= boxes_xyxy[:, across + 2])
        cuts_near = spans & (patch[near] <= boxes_xyxy[:, near]) & (patch[far] > boxes_xyxy[:, near])
        cuts_far = spans & (patch[far] >= boxes_xyxy[:, far]) & (patch[near] < boxes_xyxy[:, far])
        left[:, near] = np.where(cuts_near, np.minimum(patch[far], boxes_xyxy[:, far]), left[:, near])
        left[:, far] = np.where(cuts_far, np.maximum(patch[near], left[:, near]), left[:, far])
    uncovered_area = areas(boxes_xyxy) - areas(covered)
    return left, still_visible(boxes_xyxy, left, area=uncovered_area)
