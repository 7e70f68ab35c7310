"""The policies A-E: distributions over named transforms, drawn afresh for each (seed, step, image).

One draw of B is the original or one of three transforms with equal chance, as in the study's data set B that holds
every image four times; C the same over seven. A materialised data set calls `apply_transform` once per name of
`draws_of`, a trained one `augment` once per draw of the image.
An augmented row keeps `original_hw`, but there is no way back from its boxes to the original picture.
"""

from collections.abc import Callable, Collection
from typing import Literal, assert_never

import numpy as np

from vbd.augment import geometry, intensity, mixing
from vbd.config import Policy
from vbd.labels import RARE_LABELS
from vbd.records import Row

TransformName = Literal["original", "rotate90", "hflip", "zoom", "cutmix", "mosaic", "clahe", "competitors"]
DrawPartner = Callable[[np.random.Generator], Row]

B_DRAWS: tuple[TransformName, ...] = ("original", "rotate90", "hflip", "zoom")
C_DRAWS: tuple[TransformName, ...] = (*B_DRAWS, "cutmix", "mosaic", "clahe")
# A larger zoom cut lesions at the edge.
MAX_ZOOM = 0.1


def draws_of(policy: Policy, labels: Collection[int]) -> tuple[TransformName, ...]:
    """The transforms of an image that holds these labels, each as likely as the others, the original among them.

    Their number is how often the study's materialised data set holds the image. E draws its recipe within a transform.
    """
    match policy:
        case "A":
            return ("original",)
        case "B":
            return B_DRAWS
        case "C":
            return C_DRAWS
        case "D":
            return C_DRAWS if any(label in RARE_LABELS for label in labels) else ("original",)
        case "E":
            return ("competitors",)
        case _:
            assert_never(policy)


def draw_transform(
    policy: Policy, labels: Collection[int], *, strength: float, rng: np.random.Generator
) -> TransformName:
    """One draw: at `strength` 1 every name of `draws_of` is as likely; below, a transform yields to the original."""
    draws = draws_of(policy, labels)
    name = draws[rng.integers(len(draws))]
    if name == "competitors":  # its own probabilities are scaled by the strength, once
        return name if strength > 0 else "original"
    return name if rng.random() < strength else "original"


def augment(row: Row, *, policy: Policy, strength: float, rng: np.random.Generator, draw_partner: DrawPartner) -> Row:
    """A row as a policy draws it; `strength` 0..1 scales how often it changes and how far, 0 is the row itself.

    `image` is uint8, (S, S) or (S, S, 3). `draw_partner` gives another row of that shape, for mosaic, cutmix and mixup.
    `row` is not changed, but the result may share its arrays.
    """
    name = draw_transform(policy, row["labels"].tolist(), strength=strength, rng=rng)
    return apply_transform(name, row, strength=strength, rng=rng, draw_partner=draw_partner)


def apply_transform(
    name: TransformName, row: Row, *, strength: float, rng: np.random.Generator, draw_partner: DrawPartner
) -> Row:
    """One named transform of a row; `strength` 0..1 is how far it goes (a flip or a quarter turn has no less)."""
    match name:
        case "original":
            return row
        case "rotate90":
            return geometry.rotate90(row)
        case "hflip":
            return geometry.hflip(row)
        case "zoom":
            return geometry.scale_and_shift(row, scale=1 + MAX_ZOOM * strength)
        case "cutmix":
            return mixing.cutmix(row, draw_partner(rng), strength=strength, rng=rng)
        case "mosaic":
            return _mosaic(row, strength=strength, rng=rng, draw_partner=draw_partner)
        case "clahe":
            return row | {"image": intensity.clahe(row["image"], strength=strength)}
        case "competitors":
            return _competitors(row, strength=strength, rng=rng, draw_partner=draw_partner)
        case _:
            assert_never(name)


def _mosaic(row: Row, *, strength: float, rng: np.random.Generator, draw_partner: DrawPartner) -> Row:
    return mixing.mosaic([row, *(draw_partner(rng) for _ in range(3))], strength=strength, rng=rng)


def _competitors(row: Row, *, strength: float, rng: np.random.Generator, draw_partner: DrawPartner) -> Row:
    """What the best solutions of the competition share: no hue, no saturation, no quarter turns.

    At strength 1: mosaic 0.5, mixup 0.15, flip 0.5, scale +-20 % and translation +-10 % 0.5, brightness and contrast
    +-0.25 0.5, and one of blur (sigma up to 1 px) and noise (sigma up to 8 of 255) 0.2.
    """

    def happens(probability: float) -> bool:
        return bool(rng.random() < probability * strength)

    if happens(0.5):
        row = _mosaic(row, strength=strength, rng=rng, draw_partner=draw_partner)
    if happens(0.15):
        row = mixing.mixup(row, draw_partner(rng), rng=rng)
    if happens(0.5):
        row = geometry.hflip(row)
    if happens(0.5):
        scale = 1 + 0.2 * strength * rng.uniform(-1, 1)
        shift_x, shift_y = 0.1 * strength * rng.uniform(-1, 1, size=2)
        row = geometry.scale_and_shift(row, scale=scale, shift_xy=(shift_x, shift_y))
    return row | {"image": _competitors_intensity(row["image"], strength=strength, rng=rng)}


def _competitors_intensity(image: intensity.Image, *, strength: float, rng: np.random.Generator) -> intensity.Image:
    if rng.random() < 0.5 * strength:
        brightness, contrast = 0.25 * strength * rng.uniform(-1, 1, size=2)
        image = intensity.brightness_contrast(image, brightness=brightness, contrast=contrast)
    if rng.random() < 0.2 * strength:
        if rng.random() < 0.5:
            return intensity.blur(image, sigma=max(0.1, strength * rng.uniform(0.3, 1)))
        return intensity.noise(image, sigma=8 * strength * rng.uniform(0, 1), rng=rng)
    return image
