"""The healthy half of the synthetic data set: a frontal chest film drawn from a few smooth curves.

Patient coordinates are (u, v): u from 0 (left edge of the film) to 1, v from 0 (top) to 1, the spine near u = 0.5.
As on any frontal film the patient's right side is at the viewer's left. Density is 0 (black, air) to 1 (white, bone).
"""

from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]
Points = NDArray[np.float64]

# Outline of the lung at the viewer's left, clockwise from the apex. The other is its mirror image, its diaphragm lower.
_LUNG = np.array(
    [
        *((0.335, 0.085), (0.405, 0.125), (0.435, 0.25), (0.425, 0.42), (0.42, 0.6), (0.405, 0.725)),
        *((0.34, 0.688), (0.25, 0.675), (0.16, 0.715), (0.105, 0.785), (0.078, 0.825)),
        *((0.07, 0.7), (0.088, 0.52), (0.135, 0.32), (0.195, 0.19), (0.26, 0.11)),
    ]
)
_SUBPIXEL = 4  # bits of fraction that cv2 takes


@dataclass(frozen=True)
class Shape:
    """What differs from patient to patient, in patient coordinates."""

    matrix: NDArray[np.float64]  # (2, 3): patient coordinates to pixels
    heart_half_width: float  # of the film's width
    heart_height: float
    arch_radius: float
    domes: tuple[float, float]  # how far each half of the diaphragm stands below its usual place


@dataclass(frozen=True)
class Chest:
    """A drawn chest without findings, and where its parts lie."""

    density: Image  # (H, W)
    lungs: Image  # (2, H, W) soft masks 0..1: viewer's left, viewer's right
    outlines: tuple[Points, Points]  # (n, 2) pixels (x, y), from the apex down the inner border
    shape: Shape
    heart_box: NDArray[np.float64]  # (4,) xyxy, pixels: the heart's transverse diameter
    arch_box: NDArray[np.float64]  # (4,) xyxy, pixels: the aortic knob


def draw_shape(rng: np.random.Generator, hw: tuple[int, int], *, big_heart: bool, big_arch: bool) -> Shape:
    """A patient's build and place on the film; a big heart or aortic arch is the finding itself."""
    height, width = hw
    angle, scale = rng.normal(0, 0.02), rng.uniform(0.94, 1.06, 2)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * scale
    centre = np.array([0.5, 0.5])
    shift = centre - turn @ centre + rng.normal(0, [0.015, 0.015])
    matrix = np.concatenate([turn, shift[:, None]], axis=1) * np.array([[width], [height]])
    return Shape(
        matrix=matrix,
        heart_half_width=rng.uniform(0.22, 0.275) if big_heart else rng.uniform(0.165, 0.195),
        heart_height=rng.uniform(0.32, 0.38) if big_heart else rng.uniform(0.27, 0.31),
        arch_radius=rng.uniform(0.052, 0.068) if big_arch else rng.uniform(0.026, 0.033),
        domes=(rng.uniform(-0.015, 0.02), rng.uniform(0.0, 0.04)),
    )


def draw_chest(rng: np.random.Generator, hw: tuple[int, int], shape: Shape) -> Chest:
    """The film before findings and noise."""
    outlines = (_lung_outline(shape, False), _lung_outline(shape, True))
    lungs = np.stack([soft_polygon(hw, outline, hw[0] * 0.004) for outline in outlines])
    tissue = _tissue(rng, hw, shape)
    air = 0.17 + 0.05 * _height_map(hw) + 0.02 * smooth_noise(rng, hw, hw[0] * 0.12)
    both = lungs.sum(0)
    density = tissue * (1 - both) + air * both
    density += _vessels(rng, hw, shape) * (0.02 + both)
    density += _ribs(rng, hw, shape) * (0.3 + 0.7 * both)
    density, heart_box, arch_box = _middle(rng, density, shape)
    return Chest(density, lungs, outlines, shape, heart_box, arch_box)


def expose(rng: np.random.Generator, density: Image) -> Image:
    """What the detector makes of it, 0..1: exposure, contrast, noise, now and then the collimator's border."""
    hw = density.shape
    film = np.clip(density, 0.0, 1.0) ** np.float32(rng.uniform(0.8, 1.2))
    film = film * np.float32(rng.uniform(0.8, 0.98)) + np.float32(rng.uniform(0.0, 0.05))
    noise = rng.standard_normal(hw, dtype=np.float32)
    film += (noise + cv2.GaussianBlur(noise, (3, 3), 0.8)) * np.float32(rng.uniform(0.006, 0.014))
    if rng.random() < 0.12:
        inset = (rng.uniform(0.004, 0.03, 4) * [hw[1], hw[0], hw[1], hw[0]]).astype(int) + 1
        open_field = np.zeros(hw, np.float32)
        open_field[inset[1] : hw[0] - inset[3], inset[0] : hw[1] - inset[2]] = 1
        film = film * open_field
    return np.clip(film, 0, 1)


def to_pixels(shape: Shape, points_uv: object) -> Points:
    """Patient coordinates (n, 2) to pixels (n, 2)."""
    points = np.asarray(points_uv, np.float64)
    return points @ shape.matrix[:, :2].T + shape.matrix[:, 2]


def smooth_curve(points: Points, *, closed: bool, steps: int = 12) -> Points:
    """A Catmull-Rom curve through control points: (n, 2) -> (m, 2)."""
    ends = (points[-1:], points[:2]) if closed else (points[:1], points[-1:])
    padded = np.concatenate([ends[0], points, ends[1]])
    before, start, end, after = (padded[k : len(padded) - 3 + k, None] for k in range(4))
    t = np.linspace(0, 1, steps, endpoint=False)[None, :, None]
    curve = start + 0.5 * t * (
        end - before + t * (2 * before - 5 * start + 4 * end - after + t * (3 * (start - end) + after - before))
    )
    return curve.reshape(-1, 2)


def soft_polygon(hw: tuple[int, int], points: Points, sigma: float) -> Image:
    """A filled polygon, 0..1, its edge blurred by `sigma` pixels: (n, 2) pixels -> (H, W)."""
    mask = np.zeros(hw, np.uint8)
    cv2.fillPoly(mask, [_fixed(points)], 255, cv2.LINE_AA, _SUBPIXEL)
    return blur(mask.astype(np.float32) * np.float32(1 / 255), sigma)


def soft_lines(hw: tuple[int, int], lines: list[tuple[Points, float, float]], sigma: float) -> Image:
    """Strokes (points in pixels, width in pixels, brightness 0..1), later ones over earlier ones, blurred."""
    mask = np.zeros(hw, np.uint8)
    for points, thickness, level in lines:
        pixels = max(1, round(thickness))
        # A stroke cannot be thinner than a pixel: it grows fainter instead.
        value = round(255 * level * min(1.0, thickness))
        cv2.polylines(mask, [_fixed(points)], False, value, pixels, cv2.LINE_AA, _SUBPIXEL)
    return blur(mask.astype(np.float32) * np.float32(1 / 255), sigma)


def blur(image: Image, sigma: float) -> Image:
    """Gaussian blur; wide ones at reduced size, where they cost less."""
    if sigma < 0.3:
        return image
    shrink = int(sigma / 3)
    if shrink < 2:
        return cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    height, width = image.shape
    small_size = (max(2, width // shrink), max(2, height // shrink))
    small = cv2.resize(image, small_size, interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), sigma / shrink, borderType=cv2.BORDER_REPLICATE)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)


def smooth_noise(rng: np.random.Generator, hw: tuple[int, int], cell: float, cell_y: float | None = None) -> Image:
    """Random waves of about unit size whose hills are `cell` pixels apart (`cell_y` downwards): (H, W)."""
    rows = max(2, round(hw[0] / (cell_y or cell))) + 1
    columns = max(2, round(hw[1] / cell)) + 1
    grid = rng.standard_normal((rows, columns), dtype=np.float32)
    return cv2.resize(grid, (hw[1], hw[0]), interpolation=cv2.INTER_CUBIC)


def _fixed(points: Points) -> NDArray[np.int32]:
    return np.round(points * 2**_SUBPIXEL).astype(np.int32)


def _height_map(hw: tuple[int, int]) -> Image:
    return np.linspace(0, 1, hw[0], dtype=np.float32)[:, None]


def _lung_outline(shape: Shape, mirrored: bool) -> Points:
    points = _LUNG.copy()
    # The dome moves, its ends follow a little.
    points[5:10, 1] += shape.domes[int(mirrored)] * np.array([0.5, 1, 1, 0.8, 0.4])
    if mirrored:
        points[:, 0] = 1 - points[:, 0]
    return to_pixels(shape, smooth_curve(points, closed=True))


def _tissue(rng: np.random.Generator, hw: tuple[int, int], shape: Shape) -> Image:
    """Body without lungs: neck, shoulders, chest wall, denser below the diaphragm; black outside."""
    left = np.array([(0.4, -0.2), (0.385, 0.03), (0.3, 0.075), (0.13, 0.115), (-0.02, 0.19), (-0.1, 0.3)])
    flank = np.array([(0.005, 0.42), (0.012, 0.6), (0.0, 0.8), (-0.01, 1.2)]) - [rng.uniform(0.0, 0.05), 0]
    side = smooth_curve(np.concatenate([left, flank]), closed=False)
    outline = np.concatenate([side, (side * [-1, 1] + [1, 0])[::-1]])
    body = soft_polygon(hw, to_pixels(shape, outline), hw[0] * 0.003)
    # X-rays cross less tissue near the skin.
    depth = blur(body, hw[0] * 0.05) * body
    below = 1 / (1 + np.exp((0.66 - _height_map(hw)) * 22))
    level = np.float32(rng.uniform(0.42, 0.5)) + np.float32(rng.uniform(0.14, 0.2)) * below
    breast_uv = np.array([[0.25, 0.63], [0.75, 0.63]]) + rng.normal(0, 0.015, (2, 2))
    angles = np.linspace(0, 2 * np.pi, 24)
    circle = np.stack([np.cos(angles), np.sin(angles)], 1) * [0.15, 0.12]
    breasts = sum(soft_polygon(hw, to_pixels(shape, centre + circle), hw[0] * 0.03) for centre in breast_uv)
    shade = 1 + 0.04 * smooth_noise(rng, hw, hw[0] * 0.2)
    return (0.02 + level * depth * shade + breasts * rng.uniform(0.0, 0.06) * depth).astype(np.float32)


def _ribs(rng: np.random.Generator, hw: tuple[int, int], shape: Shape) -> Image:
    """Posterior ribs (bright, with brighter edges), fainter anterior ribs, clavicles and shoulder blades."""
    t = np.linspace(0, 1, 24)
    width, strength = hw[0] * rng.uniform(0.017, 0.021), rng.uniform(0.75, 1.0)
    behind, front = [], []
    for rib, top in enumerate(np.linspace(0.105, 0.63, 9) + rng.normal(0, 0.003, 9)):
        reach = 0.27 + 0.14 * np.sin(min(1.0, (rib + 1.5) / 6) * np.pi / 2)
        u, v = 0.465 - reach * t**0.9, top - 0.028 * np.sin(np.pi * t * 0.9) + 0.11 * t**2.6
        w = 0.465 - reach + (reach - 0.11 + 0.012 * rib) * t
        x = top + 0.105 + 0.12 * t**1.3 - 0.02 * np.sin(np.pi * t)
        for sign in (1, -1):
            path = to_pixels(shape, np.stack([0.5 + sign * (u - 0.5), v], 1))
            behind += [(path, width, 0.85), (path, width * 0.55, 0.55)]
            if rib < 6:
                front.append((to_pixels(shape, np.stack([0.5 + sign * (w - 0.5), x], 1)), width * 1.1, 0.42))
    rise = rng.uniform(-0.01, 0.03)
    for sign in (1, -1):
        collar = np.array([(0.462, 0.165), (0.4, 0.155 - rise / 2), (0.28, 0.118 - rise), (0.13, 0.105 - rise)])
        collar[:, 0] = 0.5 + sign * (collar[:, 0] - 0.5)
        line = to_pixels(shape, smooth_curve(collar, closed=False))
        behind += [(line, width * 1.25, 1.0), (line, width * 0.7, 0.75)]
        blade = np.array([(0.05, 0.16), (0.125, 0.25), (0.12, 0.36), (0.075, 0.44)])
        blade[:, 0] = 0.5 + sign * (blade[:, 0] - 0.5)
        front.append((to_pixels(shape, smooth_curve(blade, closed=False)), width * 0.8, 0.5))
    bones = soft_lines(hw, behind, hw[0] * 0.0022) + soft_lines(hw, front, hw[0] * 0.003)
    return bones * np.float32(0.2 * strength)


def _vessels(rng: np.random.Generator, hw: tuple[int, int], shape: Shape) -> Image:
    """Pulmonary vessels that fan out of both hila and thin out, and the hila themselves."""
    lines = []
    t = np.linspace(0, 1, 10)
    for sign in (1, -1):
        for _ in range(26):
            angle = rng.uniform(-1.35, 1.25)
            length, bend = rng.uniform(0.1, 0.33), rng.normal(0, 0.4)
            direction = angle + bend * t
            u = 0.40 - np.cumsum(np.cos(direction)) * length / 10 * 0.95
            v = 0.43 + rng.normal(0, 0.035) + np.cumsum(np.sin(direction)) * length / 10 * 1.1
            path = to_pixels(shape, np.stack([0.5 + sign * (u - 0.5), v], 1))
            thick = hw[0] * rng.uniform(0.003, 0.0065)
            lines += [
                (path[7:], thick * 0.35, 0.35),
                (path[4:8], thick * 0.6, 0.55),
                (path[2:5], thick * 0.85, 0.75),
                (path[:3], thick, 0.95),
            ]
    vessels = soft_lines(hw, lines, hw[0] * 0.0025)
    hila = to_pixels(shape, [[0.395, 0.43], [0.605, 0.41]])
    glow = soft_lines(hw, [(p + np.array([[0, 0], [0, hw[0] * 0.05]]), hw[0] * 0.05, 1.0) for p in hila], hw[0] * 0.02)
    return vessels * np.float32(rng.uniform(0.15, 0.22)) + glow * np.float32(0.13)


def _middle(rng: np.random.Generator, density: Image, shape: Shape) -> tuple[Image, Points, Points]:
    """Mediastinum, heart, aortic arch, spine and trachea over the film, and the boxes of heart and arch."""
    hw = (density.shape[0], density.shape[1])
    hull = np.array([(0.46, 0.1), (0.45, 0.25), (0.44, 0.45), (0.42, 0.75), (0.58, 0.75), (0.56, 0.45), (0.55, 0.25)])
    strip = soft_polygon(hw, to_pixels(shape, np.concatenate([hull, [(0.54, 0.1)]])), hw[0] * 0.006)
    heart, heart_box = _heart(rng, hw, shape)
    radius = shape.arch_radius
    angles = np.linspace(0, 2 * np.pi, 40)
    knob_uv = np.array([0.528 + radius * 0.75, 0.285]) + np.stack([np.cos(angles), np.sin(angles) * 0.9], 1) * radius
    knob = to_pixels(shape, knob_uv)
    arch = soft_polygon(hw, knob, hw[0] * 0.004)
    descending = np.array([(0.555 + radius * 0.6, 0.3), (0.56 + radius * 0.3, 0.42), (0.545, 0.6)])
    aorta = soft_lines(
        hw, [(to_pixels(shape, smooth_curve(descending, closed=False)), hw[1] * 0.03, 0.5)], hw[0] * 0.006
    )
    cover = np.maximum.reduce([strip * 0.85, heart, arch * 0.95, aorta * 0.6])
    level = np.float32(rng.uniform(0.64, 0.7))
    density = density + np.maximum(level - density, 0) * cover
    density = density + _spine(rng, hw, shape)
    airway = np.array([(0.5, -0.02), (0.497, 0.2), (0.5, 0.33)])
    trachea = soft_lines(hw, [(to_pixels(shape, airway), hw[1] * 0.035, 1.0)], hw[0] * 0.005)
    return density - trachea * np.float32(0.17), heart_box, np.concatenate([knob.min(0), knob.max(0)])


def _heart(rng: np.random.Generator, hw: tuple[int, int], shape: Shape) -> tuple[Image, Points]:
    """The heart's shadow, a third of it right of the spine, and the box of its transverse diameter."""
    half, tall = shape.heart_half_width, shape.heart_height
    middle, bottom = 0.5 + 0.27 * half, 0.76
    left, right = middle - half * rng.uniform(0.9, 0.97), middle + half
    points = np.array(
        [
            *((0.46, bottom - tall), (0.47 - 0.3 * half, bottom - 0.75 * tall), (left, bottom - 0.38 * tall)),
            *((left + 0.02, bottom - 0.08 * tall), (0.5, bottom + 0.02), (right - 0.05, bottom)),
            *((right, bottom - 0.14 * tall), (right - 0.13 * half, bottom - 0.4 * tall)),
            *((0.53 + 0.35 * half, bottom - 0.78 * tall), (0.54, bottom - tall)),
        ]
    )
    outline = to_pixels(shape, smooth_curve(points, closed=True))
    lower = outline[outline[:, 1] > to_pixels(shape, [[middle, bottom - 0.36 * tall]])[0, 1]]
    return soft_polygon(hw, outline, hw[0] * 0.006), np.concatenate([lower.min(0), lower.max(0)])


def _spine(rng: np.random.Generator, hw: tuple[int, int], shape: Shape) -> Image:
    """Vertebrae behind the mediastinum: bright blocks, darker discs between them."""
    edges = np.linspace(-0.02, 1.05, 19) + rng.normal(0, 0.002)
    bodies = []
    for top, bottom in pairwise(edges):
        middle = np.array([[0.5, top + 0.007], [0.5, bottom - 0.007]])
        bodies.append((to_pixels(shape, middle), hw[1] * 0.062, 0.9))
    column = to_pixels(shape, [[0.5, -0.05], [0.5, 1.1]])
    blocks = soft_lines(hw, bodies, hw[0] * 0.004)
    return blocks * np.float32(0.07) + soft_lines(hw, [(column, hw[1] * 0.085, 1.0)], hw[0] * 0.006) * np.float32(0.06)
