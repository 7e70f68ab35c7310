"""Composed pictures go the way of their film: the same draws, the same boxes, the same pixels in its channel."""

from typing import get_args

import numpy as np
import pytest

from tests.data.films import smooth
from vbd.augment import intensity
from vbd.augment.policies import TransformName, apply_transform, augment
from vbd.boxes import as_boxes
from vbd.config import POLICIES, Policy
from vbd.data.images.prepare import compose
from vbd.records import Row

SIDE = 64
NAMES: tuple[TransformName, ...] = get_args(TransformName)


def film(seed: int) -> np.ndarray:
    return np.roll(smooth(SIDE, SIDE), (7 * seed, 3 * seed), axis=(0, 1))


def row(image: np.ndarray, seed: int) -> Row:
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.uniform(0, SIDE, (3, 2, 2)), axis=1)
    return Row(
        image_id=str(seed),
        fold=0,
        image=image,
        original_hw=np.array([2000, 1000]),
        boxes=as_boxes(corners),
        labels=rng.integers(0, 14, 3),
        readers=np.ones(3, np.int64),
    )


def grey(seed: int) -> Row:
    return row(film(seed), seed)


def composed(seed: int) -> Row:
    return row(compose(film(seed)), seed)


def assert_same_way(ours: Row, theirs: Row) -> None:
    """`ours` composed, `theirs` grey."""
    assert ours["image"].shape == (SIDE, SIDE, 3)
    assert ours["image"].dtype == np.uint8
    np.testing.assert_array_equal(ours["image"][..., 0], theirs["image"])
    np.testing.assert_array_equal(ours["boxes"], theirs["boxes"])
    np.testing.assert_array_equal(ours["labels"], theirs["labels"])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_the_film_of_a_composed_picture_goes_as_a_grey_one(name: TransformName, strength: float) -> None:
    for seed in range(12):
        results = [
            apply_transform(
                name,
                source(seed),
                strength=strength,
                rng=np.random.default_rng(seed),
                draw_partner=lambda rng, source=source: source(int(rng.integers(100))),
            )
            for source in (composed, grey)
        ]
        assert_same_way(*results)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_draws_the_same_for_both(policy: Policy) -> None:
    for seed in range(20):
        results = [
            augment(
                source(seed),
                policy=policy,
                strength=0.8,
                rng=np.random.default_rng(seed),
                draw_partner=lambda rng, source=source: source(int(rng.integers(100))),
            )
            for source in (composed, grey)
        ]
        assert_same_way(*results)


@pytest.mark.parametrize("name", NAMES)
def test_equal_channels_stay_equal(name: TransformName) -> None:
    for seed in range(12):
        image = np.repeat(film(seed)[..., None], 3, axis=2)
        partner = row(image[::-1].copy(), seed)
        result = apply_transform(
            name,
            row(image, seed),
            strength=1,
            rng=np.random.default_rng(seed),
            draw_partner=lambda rng, partner=partner: partner,
        )["image"]
        for other in (1, 2):
            np.testing.assert_array_equal(result[..., other], result[..., 0])


def test_noise_is_the_same_in_every_channel() -> None:
    image = np.full((SIDE, SIDE, 3), 100, np.uint8) + np.array([0, 20, 50], np.uint8)
    noisy = intensity.noise(image, sigma=8, rng=np.random.default_rng(0)).astype(int)
    grain = noisy - image
    assert grain[..., 0].std() > 6
    np.testing.assert_array_equal(grain[..., 1], grain[..., 0])
    np.testing.assert_array_equal(grain[..., 2], grain[..., 0])


def test_contrast_turns_about_the_mean_of_the_film() -> None:
    image = np.zeros((SIDE, SIDE, 3), np.uint8) + np.array([100, 200, 10], np.uint8)
    changed = intensity.brightness_contrast(image, brightness=0, contrast=0.25)
    assert changed[0, 0].tolist() == [100, 225, 0]


def test_clahe_equalises_each_channel_by_itself() -> None:
    image = compose(film(1))
    changed = intensity.clahe(image, strength=1)
    for channel in range(3):
        np.testing.assert_array_equal(changed[..., channel], intensity.clahe(image[..., channel], strength=1))
    np.testing.assert_array_equal(intensity.clahe(image, strength=0), image)
