"""Pictures and boxes moved together. A pixel i covers i..i+1, so a box's edge is at the same place in both.

Pictures are square uint8, (S, S) or (S, S, 3), boxes xyxy (n, 4) in their pixels; nothing is changed in place.
"""

import numpy as np
from numpy.typing import NDArray

from vbd import boxes as box
from vbd.boxes import Boxes
from vbd.records import Row

# A box of which less than this share of the area is left in the picture has lost its finding.
MIN_VISIBLE = 0.25
# A box thinner than this, in pixels, has vanished.
MIN_SIDE = 1.0


def moved(row: Row, image: NDArray[np.uint8], boxes_xyxy: Boxes, *, keep: NDArray[np.bool_] | None = None) -> Row:
    """The row with another picture and its boxes there; where `keep` is False a box goes with its label and readers."""
    chosen = np.ones(len(boxes_xyxy), bool) if keep is None else keep
    return row | {
        "image": image,
        "boxes": boxes_xyxy[chosen].astype(np.float32),
        "labels": row["labels"][chosen],
        "readers": row["readers"][chosen],
    }


def cut(boxes_xyxy: NDArray, window_xyxy: tuple[float, float, float, float]) -> tuple[Boxes, NDArray[np.bool_]]:
    """Boxes cut at the edges of a window, (n, 4), and which of them still show their finding, (n,)."""
    x_min, y_min, x_max, y_max = window_xyxy
    inside = np.clip(boxes_xyxy, [x_min, y_min, x_min, y_min], [x_max, y_max, x_max, y_max]).astype(np.float32)
    return inside, still_visible(boxes_xyxy, inside, area=box.areas(inside))


def still_visible(whole_xyxy: NDArray, left_xyxy: NDArray, *, area: NDArray) -> NDArray[np.bool_]:
    """Which boxes can still be learnt from: (n, 4), what is left (n, 4), how much of that shows `area` (n,) -> (n,)."""
    sides = left_xyxy[:, 2:] - left_xyxy[:, :2]
    return (sides >= MIN_SIDE).all(axis=1) & (area >= MIN_VISIBLE * box.areas(whole_xyxy))


def hflip(row: Row) -> Row:
    """Mirrored left to right."""
    import cv2  # as in every function here: 0.1 s, kept out of --help

    image = cv2.flip(row["image"], 1)
    return moved(row, image, box.hflip(row["boxes"], image.shape[1]))


def rotate90(row: Row) -> Row:
    """Turned clockwise by a quarter."""
    import cv2

    image = cv2.rotate(row["image"], cv2.ROTATE_90_CLOCKWISE)
    x_min, y_min, x_max, y_max = row["boxes"].T
    height = row["image"].shape[0]
    return moved(row, image, np.stack([height - y_max, x_min, height - y_min, x_max], axis=1))


def scale_and_shift(row: Row, *, scale: float, shift_xy: tuple[float, float] = (0.0, 0.0)) -> Row:
    """Enlarged (`scale` > 1) or shrunk about the centre, then shifted by a share of the side; what is bare is black."""
    import cv2

    height, width = row["image"].shape[:2]
    shift = (np.array([width, height]) / 2) * (1 - scale) + np.array(shift_xy) * [width, height]
    # OpenCV counts from the centre of the first pixel, boxes from its edge.
    to_centres = shift + 0.5 * scale - 0.5
    matrix = np.array([[scale, 0, to_centres[0]], [0, scale, to_centres[1]]])
    image = cv2.warpAffine(row["image"], matrix, (width, height), flags=cv2.INTER_LINEAR)
    inside, keep = cut(row["boxes"] * scale + np.tile(shift, 2), (0, 0, width, height))
    return moved(row, image, inside, keep=keep)
