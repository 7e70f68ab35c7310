"""The 14 findings of the synthetic data set, each drawn as a change of the film at its usual place.

Cardiomegaly and aortic enlargement are part of the anatomy; the other twelve are drawn here over a healthy chest.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vbd.boxes import clip, iou_matrix
from vbd.data.phantom.anatomy import (
    Chest,
    Image,
    Points,
    blur,
    draw_chest,
    draw_shape,
    smooth_curve,
    smooth_noise,
    soft_lines,
    soft_polygon,
)

AORTIC_ENLARGEMENT, CARDIOMEGALY = 0, 3

# A finding drawn: the new film and the finding's box (xyxy, pixels).
Drawn = tuple[Image, Points]
Draw = Callable[[np.random.Generator, Image, Chest, int, Points], Drawn]


@dataclass(frozen=True)
class Finding:
    """How one class is drawn, and where its centre may lie within the lung."""

    draw: Draw
    # Part of the lung's height, and of its width from the spine outwards, where the centre may lie.
    rows: tuple[float, float] = (0.1, 0.8)
    columns: tuple[float, float] = (0.25, 0.75)


def draw_film(rng: np.random.Generator, hw: tuple[int, int], labels: list[int]) -> tuple[Image, NDArray[np.float32]]:
    """A chest with the given findings (labels 0..13, repeats allowed) before exposure, and their boxes (n, 4)."""
    shape = draw_shape(rng, hw, big_heart=CARDIOMEGALY in labels, big_arch=AORTIC_ENLARGEMENT in labels)
    chest = draw_chest(rng, hw, shape)
    film, boxes = chest.density, np.zeros((len(labels), 4), np.float32)
    # Wide soft changes first, so that small ones stay visible on top.
    for index in sorted(range(len(labels)), key=lambda k: _ORDER.index(labels[k])):
        label = labels[index]
        if label == CARDIOMEGALY:
            boxes[index] = chest.heart_box
        elif label == AORTIC_ENLARGEMENT:
            boxes[index] = chest.arch_box
        else:
            taken = boxes[boxes.any(1)]
            film, boxes[index] = _draw_apart(rng, film, chest, FINDINGS[label], taken)
    return film, clip(boxes, hw)


def _draw_apart(
    rng: np.random.Generator, film: Image, chest: Chest, finding: Finding, taken: NDArray[np.float32]
) -> Drawn:
    """Draws a finding where it overlaps little with those already there; the last try stays in any case."""
    for _ in range(8):
        side = int(rng.integers(2))
        drawn, box = finding.draw(rng, film, chest, side, _centre(rng, chest, side, finding))
        if not len(taken) or iou_matrix(box[None], taken).max() < 0.15:
            break
    return drawn, box


def _centre(rng: np.random.Generator, chest: Chest, side: int, finding: Finding) -> Points:
    """A point (x, y), pixels, within a lung."""
    outline = chest.outlines[side]
    top, bottom = outline[:, 1].min(), outline[:, 1].max()
    # The lung's last fifth is the narrow recess beside the diaphragm: `rows` counts above it.
    y = top + (bottom - top) * 0.85 * rng.uniform(*finding.rows)
    at = int(np.clip(y, 0, len(chest.density) - 1))
    # Where heart or mediastinum covers the lung, little could be seen.
    row = np.flatnonzero((chest.lungs[side, at] > 0.5) & (chest.density[at] < 0.5))
    first, last = (row[0], row[-1]) if len(row) else (outline[:, 0].min(), outline[:, 0].max())
    part = rng.uniform(*finding.columns)
    return np.array([last - part * (last - first) if side == 0 else first + part * (last - first), y])


def _blob(rng: np.random.Generator, centre: Points, radii: Points, rough: float) -> Points:
    """Outline of a roundish patch: (48, 2) pixels."""
    angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    radius = np.ones(48)
    for wave in range(2, 6):
        radius += rough / wave * rng.normal() * np.cos(wave * angles + rng.uniform(0, 2 * np.pi))
    return centre + np.stack([np.cos(angles), np.sin(angles)], 1) * radius[:, None] * radii


def _bounds(points: Points) -> Points:
    return np.concatenate([points.min(0), points.max(0)])


def _radii(rng: np.random.Generator, film: Image, share: float, *, spread: float, aspect: float = 0.25) -> Points:
    """Half axes, pixels, of a patch whose box covers about `share` of the film."""
    ratio = np.exp(rng.normal(0, aspect))
    half = np.sqrt(share * np.exp(rng.normal(0, spread)) * film.size) / 2
    return np.array([half * ratio, half / ratio])


def _whiten(film: Image, cover: Image, level: float) -> Image:
    """Fills towards a density; what is denser already stays."""
    return film + np.maximum(np.float32(level) - film, 0) * np.clip(cover, 0, 1)


def _brighten(film: Image, amount: Image) -> Image:
    """Adds density where there is air; what is dense already hardly changes."""
    return film + np.minimum(amount, np.maximum(np.float32(0.68) - film, 0))


def _mesh(rng: np.random.Generator, film: Image, cell: float, cell_y: float | None = None) -> Image:
    """A net of thin lines: where smooth noise crosses zero."""
    hw = (film.shape[0], film.shape[1])
    return np.exp(-((smooth_noise(rng, hw, cell, cell_y) / np.float32(0.3)) ** 2))


def _atelectasis(rng: np.random.Generator, film: Image, chest: Chest, side: int, centre: Points) -> Drawn:
    """A collapsed segment: a sharp white wedge that points at the hilum."""
    hw = (film.shape[0], film.shape[1])
    half = _radii(rng, film, 0.026, spread=0.3, aspect=0.1)
    outwards = -1 if side == 0 else 1
    tip = centre - [outwards * half[0], half[1] * 0.7]
    corners = np.array([tip, centre + half * np.array([outwards, -0.1]), centre + half * np.array([0.5 * outwards, 1])])
    wedge = soft_polygon(hw, corners, hw[0] * 0.0035) * (0.2 + 0.8 * chest.lungs[side])
    return _whiten(film, wedge * 0.9, 0.62), _bounds(corners)


def _calcification(rng: np.random.Generator, film: Image, chest: Chest, side: int, centre: Points) -> Drawn:
    """A few small grains as white as bone."""
    hw = (film.shape[0], film.shape[1])
    half = _radii(rng, film, 0.0032, spread=0.4, aspect=0.15)
    grains = [centre + rng.uniform(-0.75, 0.75, 2) * half for _ in range(int(rng.integers(3, 6)))]
    grains += [centre + half * np.array([0.8, rng.uniform(-0.7, 0.7)]), centre - half * 0.8]
    radius = np.maximum(half.mean() * rng.uniform(0.22, 0.42, len(grains)), 0.6)
    specks = np.maximum.reduce(
        [
            soft_polygon(hw, _blob(rng, grain, np.array([r, r]), 0.3), hw[0] * 0.0012)
            for grain, r in zip(grains, radius, strict=True)
        ]
    )
    return _whiten(film, specks, 1.0), np.concatenate([centre - half, centre + half])


def _consolidation(rng: np.random.Generator, film: Image, chest: Chest, side: int, centre: Points) -> Drawn:
    """Air spaces filled: a dense even patch with a border, and dark air-filled bronchi through it."""
    hw = (film.shape[0], film.shape[1])
    outline = _blob(rng, centre, _radii(rng, film, 0.036, spread=0.3), 0.25)
    patch = soft_polygon(hw, outline, hw[0] * 0.009) * chest.lungs[side]
    hilum = centre + np.array([(-1 if side else 1) * np.ptp(outline[:, 0]) * 0.45, 0])
    bronchi = []
    for _ in range(4):
        end = centre + rng.normal(0, 0.22, 2) * np.ptp(outline, axis=0)
        bronchi.append(
            (np.stack([hilum, (hilum + end) / 2 + rng.normal(0, hw[0] * 0.004, 2), end]), hw[0] * 0.005, 1.0)
        )
    air = soft_lines(hw, bronchi, hw[0] * 0.0015) * patch
    return _whiten(film, patch * (0.86 - 0.4 * air + 0.1 * smooth_noise(rng, hw, hw[0] * 0.03)), 0.6), _bounds(outline)


def _ild(rng: np.random.Generator, film: Image, chest: Chest, side: int, centre: Points) -> Drawn:
    """Interstitial disease: a fine even net over much of one lung."""
    hw = (film.shape[0], film.shape[1])
    outline = _blob(rng, centre, _radii(rng, film, 0.075, spread=0.2, aspect=0.1) * [0.8, 1.25], 0.06)
    patch = soft_polygon(hw, outline, hw[0] * 0.01) * chest.lungs[side]
    net = _mesh(rng, film, hw[0] * 0.017)
    lung, box = _bounds(chest.outlines[side]), _bounds(outline)
    return _brighten(film, patch * (0.03 + 0.2 * net)), np.concatenate(
        [np.maximum(box[:2], lung[:2]), np.minimum(box[2:], lung[2:])]
    )


def _infiltration(rng: np.random.Generator, film: Image, chest: Chest, side: int, centre: Points) -> Drawn:
    """Several fuzzy patches together."""
    hw = (film.shape[0], film.shape[1])
    half = _radii(rng, film, 0.03, spread=0.3)
    patches = np.zeros(hw, np.float32)
    for angle in np.linspace(0, 2 * np.pi, 7)[:-1] + rng.uniform(0, 1):
        spot = centre + np.array([np.cos(angle), np.sin(angle)]) * half * rng.uniform(0.55, 0.75)
        outline = _blob(rng, spot, half * rng.uniform(0.22, 0.36), 0.4)
        patches = np.maximum(patches, soft_polygon(hw, outline, hw[0] * 0.006) * rng.uniform(0.6, 1))
    return _brighten(film, patches * chest.lungs[side] * np.float32(0.24)), np.concatenate(
        [centre - half, centre + half]
    )


def _opacity(rng: np.random.Generator, film: Image, chest: Chest, side: int, centre: Points) -> Drawn:
    """Ground glass: one even haze without a border, through which the vessels still show."""
    hw = (film.shape[0], film.shape[1])
    half = _radii(rng, film, 0.022, spread=0.35)
    haze = soft_polygon(hw, _blob(rng, centre, half * 0.85, 0.12), float(half.mean()) * 0.2)
    amount = haze * chest.lungs[side] * np.float32(rng.uniform(0.19, 0.25))
    return _brighten(film, amount), np.concatenate([centre - half, centre + half])


def _nodule(rng: np.random.Generator, film: Image, chest: Chest, side: int, centre: Points) -> Drawn:
    """A round white spot; now and then a mass of several centimetres."""
    hw = (film.shape[0], film.shape[1])
    outline = _blob(rng, centre, _radii(rng, film, 0.0017, spread=0.55, aspect=0.06), 0.05)
    spot = soft_polygon(hw, outline, hw[0] * 0.0018)
    return _whiten(film, spot * 0.95, rng.uniform(0.66, 0.78)), _bounds(outline)


def _other_lesion(rng: np.random.Generator, film: Image, chest: Chest, side: int, centre: Points) -> Drawn:
    """What has no class of its own: here a cavity or bulla, a thin white ring around dark air."""
    hw = (film.shape[0], film.shape[1])
    half = _radii(rng, film, 0.011, spread=0.3, aspect=0.12)
    outline = _blob(rng, centre, half * 0.94, 0.04)
    lumen = soft_polygon(hw, outline, hw[0] * 0.002)
    wall = soft_lines(hw, [(np.concatenate([outline, outline[:1]]), hw[0] * 0.008, 1.0)], hw[0] * 0.0018)
    darker = film - lumen * np.maximum(film - 0.1, 0) * 0.65
    return _whiten(darker, wall * 0.9, 0.54), np.concatenate([centre - half, centre + half])


def _effusion(rng: np.random.Generator, film: Image, chest: Chest, side: int, centre: Points) -> Drawn:
    """Fluid that fills the base of the lung and climbs along the chest wall."""
    hw = (film.shape[0], film.shape[1])
    outline = chest.outlines[side]
    outer = outline[:, 0].min() if side == 0 else outline[:, 0].max()
    deep = outline[outline[:, 1].argmax()]
    inwards = 1 if side == 0 else -1
    high, wide = rng.uniform(0.11, 0.2) * hw[0], rng.uniform(0.16, 0.26) * hw[1]
    top = deep[1] - high
    surface = np.array(
        [[-0.3, -0.1], [0.0, 0.0], [0.1, 0.2], [0.3, 0.38], [0.65, 0.48], [1.0, 0.55], [1.0, 1.15], [-0.3, 1.15]]
    )
    fluid = np.array([outer, top]) + surface * [inwards * wide, high]
    pool = soft_polygon(hw, fluid, hw[0] * 0.006) * np.minimum(1, 1.8 * blur(chest.lungs[side], hw[0] * 0.003))
    box = np.array([min(outer, outer + inwards * wide), top, max(outer, outer + inwards * wide), deep[1]])
    return _whiten(film, pool * 0.96, 0.66), box


def _thickening(rng: np.random.Generator, film: Image, chest: Chest, side: int, centre: Points) -> Drawn:
    """A white rind along the chest wall: mostly a cap over the apex, else a strip at the side."""
    hw = (film.shape[0], film.shape[1])
    outline = chest.outlines[side]
    # The outline starts at the apex and comes back to it along the chest wall.
    steps, thick = len(outline), hw[0] * rng.uniform(0.022, 0.032)
    if rng.random() < 0.65:
        piece = np.roll(outline, round(steps * 0.08), axis=0)[: round(steps * 0.13)]
    else:
        start = round(steps * rng.uniform(0.74, 0.84))
        piece = outline[start : start + round(steps * 0.06)]
    rind = soft_lines(hw, [(piece, thick, 1.0)], hw[0] * 0.0025) * chest.lungs[side]
    box = _bounds(piece)
    inner = thick * 0.5
    box[3] += inner
    box[0 if side else 2] += -inner if side else inner
    return _whiten(film, rind * 0.95, 0.62), box


def _pneumothorax(rng: np.random.Generator, film: Image, chest: Chest, side: int, centre: Points) -> Drawn:
    """Air beside the lung: a black apex without vessels, bounded below by the thin line of the pleura."""
    hw = (film.shape[0], film.shape[1])
    outline = chest.outlines[side]
    top, outer = outline[:, 1].min(), outline[:, 0].min() if side == 0 else outline[:, 0].max()
    inner = outline[:, 0].max() if side == 0 else outline[:, 0].min()
    wide, deep = inner - outer, rng.uniform(0.24, 0.34) * hw[0]
    edge_uv = np.array([[0.98, 0.2], [0.8, 0.36], [0.58, 0.52], [0.42, 0.75], [0.3, 1.0]])
    edge = smooth_curve(np.array([outer, top]) + edge_uv * [wide, deep], closed=False)
    around = np.array(
        [[outer - wide * 0.3, top + deep], [outer - wide * 0.3, top - deep * 0.2], [inner, top - deep * 0.2]]
    )
    lung = chest.lungs[side]
    space = soft_polygon(hw, np.concatenate([edge, around]), hw[0] * 0.002) * lung
    line = soft_lines(hw, [(edge, hw[0] * 0.005, 1.0)], hw[0] * 0.001) * lung
    # Ribs stay, vessels go: only the slow part of what is brighter than air is taken away.
    bare = film - space * (film - (0.06 + 0.6 * np.maximum(film - blur(film, hw[0] * 0.012), 0)))
    near = outline[outline[:, 1] < top + deep]
    box = np.array([near[:, 0].min(), top, near[:, 0].max(), top + deep])
    return _whiten(bare, line * 0.8, 0.5), box


def _fibrosis(rng: np.random.Generator, film: Image, chest: Chest, side: int, centre: Points) -> Drawn:
    """Scars: a bundle of coarse white strands."""
    hw = (film.shape[0], film.shape[1])
    half = _radii(rng, film, 0.012, spread=0.35, aspect=0.15)
    strands = []
    slope = rng.uniform(0.3, 1.0) * (-1 if side else 1)
    for _ in range(13):
        middle = centre + rng.uniform(-0.6, 0.6, 2) * half
        along = np.array([1.0, slope + rng.normal(0, 0.25)])
        along *= half.mean() * rng.uniform(0.5, 0.95) / np.hypot(*along)
        bend = rng.normal(0, 0.14, 2) * half
        path = smooth_curve(np.stack([middle - along, middle + bend, middle + along]), closed=False)
        strands.append((path, hw[0] * rng.uniform(0.0022, 0.005), rng.uniform(0.75, 1.0)))
    inside = soft_polygon(hw, _blob(rng, centre, half, 0.05), hw[0] * 0.003)
    scars = soft_lines(hw, strands, hw[0] * 0.0014) * inside
    haze = soft_polygon(hw, _blob(rng, centre, half * 0.7, 0.2), float(half.mean()) * 0.2)
    return _brighten(film, scars * 0.33 + haze * 0.06), np.concatenate([centre - half, centre + half])


FINDINGS: dict[int, Finding] = {
    1: Finding(_atelectasis, rows=(0.5, 0.85), columns=(0.4, 0.6)),
    2: Finding(_calcification),
    4: Finding(_consolidation, rows=(0.3, 0.85), columns=(0.4, 0.65)),
    5: Finding(_ild, rows=(0.45, 0.7), columns=(0.45, 0.55)),
    6: Finding(_infiltration, rows=(0.25, 0.8), columns=(0.4, 0.65)),
    7: Finding(_opacity, rows=(0.25, 0.85)),
    8: Finding(_nodule, rows=(0.15, 0.85), columns=(0.2, 0.85)),
    9: Finding(_other_lesion, rows=(0.2, 0.8), columns=(0.3, 0.7)),
    10: Finding(_effusion),
    11: Finding(_thickening),
    12: Finding(_pneumothorax),
    13: Finding(_fibrosis, rows=(0.1, 0.6), columns=(0.35, 0.7)),
}
# Order of drawing: air first, then wide changes, then small ones.
_ORDER = (AORTIC_ENLARGEMENT, CARDIOMEGALY, 12, 5, 7, 6, 4, 1, 10, 9, 13, 11, 8, 2)
