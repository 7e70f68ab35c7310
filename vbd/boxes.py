"""Pure functions on boxes: `xyxy`, float, pixels, shape (n, 4); never in place, and n may be 0."""

import numpy as np
from numpy.typing import NDArray

from vbd.config import ResizeMode

Boxes = NDArray[np.float32]

EMPTY: Boxes = np.zeros((0, 4), np.float32)
EMPTY.setflags(write=False)


def as_boxes(values: object) -> Boxes:
    """Any nested sequence of coordinates as float32 (n, 4); an empty one becomes (0, 4)."""
    return np.asarray(values, np.float32).reshape(-1, 4)


def areas(boxes_xyxy: NDArray) -> NDArray:
    """Area of each box: (n, 4) -> (n,), in pixels squared. Sizes are `x_max - x_min`, without the old +1."""
    return (boxes_xyxy[:, 2] - boxes_xyxy[:, 0]) * (boxes_xyxy[:, 3] - boxes_xyxy[:, 1])


def iou_matrix(first_xyxy: NDArray, second_xyxy: NDArray) -> NDArray[np.float64]:
    """IoU of every pair: (n, 4), (m, 4) -> (n, m). A pair without any area has IoU 0."""
    first, second = np.asarray(first_xyxy, np.float64), np.asarray(second_xyxy, np.float64)
    top_left = np.maximum(first[:, None, :2], second[None, :, :2])
    bottom_right = np.minimum(first[:, None, 2:], second[None, :, 2:])
    sides = np.clip(bottom_right - top_left, 0, None)
    intersection = sides[..., 0] * sides[..., 1]
    union = areas(first)[:, None] + areas(second)[None, :] - intersection
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)


def clip(boxes_xyxy: NDArray, hw: tuple[float, float]) -> Boxes:
    """Boxes cut at the border of an image of height and width `hw`."""
    height, width = hw
    limit = np.array([width, height, width, height], np.float32)
    return np.clip(boxes_xyxy, 0, limit).astype(np.float32)


def has_area(boxes_xyxy: NDArray, min_side: float = 0.0) -> NDArray[np.bool_]:
    """Which boxes are finite and have both sides longer than `min_side` pixels: (n, 4) -> (n,)."""
    sides = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    return np.isfinite(boxes_xyxy).all(1) & (sides > min_side).all(1)


def hflip(boxes_xyxy: NDArray, width: float) -> Boxes:
    """Boxes of the image mirrored left to right."""
    x_min, y_min, x_max, y_max = boxes_xyxy.T
    return np.stack([width - x_max, y_min, width - x_min, y_max], axis=1).astype(np.float32)


def xyxy_to_xywh(boxes_xyxy: NDArray) -> NDArray:
    """(x_min, y_min, x_max, y_max) to COCO's (x_min, y_min, width, height)."""
    return np.concatenate([boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]], axis=1)


def xywh_to_xyxy(boxes_xywh: NDArray) -> NDArray:
    """COCO's (x_min, y_min, width, height) to (x_min, y_min, x_max, y_max)."""
    return np.concatenate([boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]], axis=1)


def resize_transform(original_hw: tuple[int, int], image_size: int, mode: ResizeMode) -> tuple[NDArray, NDArray]:
    """Scale and offset, each (x, y), that take original pixels to the pixels of the square prepared image.

    `stretch` fills the square; `letterbox` keeps the aspect ratio and centres the picture.
    """
    height, width = original_hw
    if mode == "stretch":
        return np.array([image_size / width, image_size / height]), np.zeros(2)
    scale = image_size / max(height, width)
    # The longer side may come out a rounding error longer than the square: its offset is 0, not -1.
    offset = np.maximum(image_size - scale * np.array([width, height]), 0) / 2
    return np.array([scale, scale]), np.floor(offset)


def to_prepared(boxes_xyxy: NDArray, original_hw: tuple[int, int], image_size: int, mode: ResizeMode) -> Boxes:
    """Boxes in original pixels to pixels of the prepared image."""
    scale, offset = resize_transform(original_hw, image_size, mode)
    return (boxes_xyxy * np.tile(scale, 2) + np.tile(offset, 2)).astype(np.float32)


def to_original(boxes_xyxy: NDArray, original_hw: tuple[int, int], image_size: int, mode: ResizeMode) -> Boxes:
    """Boxes in pixels of the prepared image to original pixels, cut at the image's border."""
    scale, offset = resize_transform(original_hw, image_size, mode)
    return clip((boxes_xyxy - np.tile(offset, 2)) / np.tile(scale, 2), original_hw)
