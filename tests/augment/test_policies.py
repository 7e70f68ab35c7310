"""A rectangle is painted where its box is, and found again after each transform."""

from collections import Counter
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vbd.augment import geometry, intensity
from vbd.augment.mixing import mixup
from vbd.augment.policies import TransformName, apply_transform, augment, draw_transform, draws_of
from vbd.boxes import as_boxes
from vbd.config import POLICIES, Policy
from vbd.records import Row

SIDE = 96
NAMES: tuple[TransformName, ...] = get_args(TransformName)


def painted(boxes: list | np.ndarray, *, bright: bool = True, first_label: int = 0, side: int = SIDE) -> Row:
    """A dark picture with a bright rectangle in each box, or without; whole coordinates are painted exactly."""
    corners = as_boxes(boxes)
    image = np.full((side, side), 20, np.uint8)
    if bright:
        for x_min, y_min, x_max, y_max in corners.astype(int):
            image[y_min:y_max, x_min:x_max] = 220
    return Row(
        image_id="base",
        fold=0,
        image=image,
        original_hw=np.array([2000, 1000]),
        boxes=corners,
        labels=np.arange(first_label, first_label + len(corners)),
        readers=np.arange(len(corners)) % 3 + 1,
    )


def nobody(rng: np.random.Generator) -> Row:
    raise AssertionError("no partner was wanted")


def a_partner(rng: np.random.Generator) -> Row:
    return painted([[30, 40, 60, 60]], first_label=int(rng.integers(14)))


def bright_part(image: np.ndarray) -> tuple[np.ndarray, int]:
    """The box around what is bright, (4,), and the number of bright pixels."""
    low, high = int(image.min()), int(image.max())
    rows, columns = np.nonzero(image > (low + high) / 2)
    if high - low < 30 or len(rows) == 0:
        return np.zeros(4), 0
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]), len(rows)


def equal(first: Row, second: Row) -> bool:
    ours: dict[str, Any] = dict(first)
    theirs: dict[str, Any] = dict(second)
    return ours.keys() == theirs.keys() and all(np.array_equal(value, theirs[key]) for key, value in ours.items())


@st.composite
def rectangles(draw: st.DrawFn) -> list[int]:
    width, height = draw(st.integers(8, 60)), draw(st.integers(8, 60))
    left, top = draw(st.integers(0, SIDE - width)), draw(st.integers(0, SIDE - height))
    return [left, top, left + width, top + height]


def among(rectangle: list[int], place: int, *, is_painted: bool = True) -> tuple[Row, Callable]:
    """A row and a source of partners, of which the one drawn at `place` (0 is the row itself) holds label 13.

    Only that one is bright, so that what is found in the result is its rectangle and no other one.
    """
    rows = [painted([], side=SIDE) for _ in range(8)]
    rows[place] = painted([rectangle], bright=is_painted, first_label=13)
    partners = iter(rows[1:])
    return rows[0], lambda rng: next(partners)


PLACES = [
    *((name, 0) for name in NAMES),
    *(("mosaic", place) for place in (1, 2, 3)),
    ("cutmix", 1),
]


@pytest.mark.parametrize(("name", "place"), PLACES)
@settings(max_examples=40, deadline=None)
@given(rectangle=rectangles(), seed=st.integers(0, 10**6), strength=st.sampled_from([1.0, 0.5]))
def test_box_lies_where_its_pixels_are(
    name: TransformName, place: int, rectangle: list[int], seed: int, strength: float
) -> None:
    row, draw_partner = among(rectangle, place)
    result = apply_transform(name, row, strength=strength, rng=np.random.default_rng(seed), draw_partner=draw_partner)
    assert result["image"].shape == (SIDE, SIDE)
    assert result["image"].dtype == np.uint8
    assert result["boxes"].dtype == np.float32
    assert len(result["boxes"]) == len(result["labels"]) == len(result["readers"])
    found, pixels = bright_part(result["image"])
    if len(result["boxes"]):
        assert result["labels"].tolist() == [13]
        np.testing.assert_allclose(result["boxes"][0], found, atol=1.01)
    elif name != "competitors":  # which changes the size more than once
        growth = 1.1**2 if name == "zoom" else 1
        area = (rectangle[2] - rectangle[0]) * (rectangle[3] - rectangle[1]) * growth
        assert pixels <= geometry.MIN_VISIBLE * area * 1.1 + 2


def test_mixup_keeps_both_pictures() -> None:
    row = painted([[10, 10, 30, 30]])
    partner = painted([[50, 50, 90, 80]], first_label=5)
    mixed = mixup(row, partner, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(mixed["boxes"], [[10, 10, 30, 30], [50, 50, 90, 80]])
    assert mixed["labels"].tolist() == [0, 5]
    assert 60 < mixed["image"][20, 20] < 180
    assert 60 < mixed["image"][60, 60] < 180
    assert mixed["image"][0, 0] == 20


def test_quarter_turn_and_flip_are_exact() -> None:
    row = painted([[10, 20, 30, 60]])
    turned, flipped = geometry.rotate90(row), geometry.hflip(row)
    np.testing.assert_array_equal(turned["boxes"], [[SIDE - 60, 10, SIDE - 20, 30]])
    np.testing.assert_array_equal(turned["image"], np.rot90(row["image"], -1))
    np.testing.assert_array_equal(flipped["boxes"], [[SIDE - 30, 20, SIDE - 10, 60]])
    np.testing.assert_array_equal(flipped["image"], row["image"][:, ::-1])


def test_zoom_is_ten_percent_about_the_centre() -> None:
    zoomed = apply_transform(
        "zoom", painted([[38, 38, 58, 58]]), strength=1, rng=np.random.default_rng(0), draw_partner=nobody
    )
    np.testing.assert_allclose(zoomed["boxes"], [[37, 37, 59, 59]], atol=1e-4)


def test_boxes_that_leave_the_picture_go_with_their_labels() -> None:
    row = painted([[0, 0, 10, 10], [40, 40, 60, 60], [0, 50, 20, 60]])
    shifted = geometry.scale_and_shift(row, scale=1, shift_xy=(-0.1, 0))
    np.testing.assert_allclose(shifted["boxes"], [[30.4, 40, 50.4, 60], [0, 50, 10.4, 60]], atol=1e-4)
    assert shifted["labels"].tolist() == [1, 2]
    assert shifted["readers"].tolist() == [2, 3]


@pytest.mark.parametrize("policy", POLICIES)
def test_no_strength_is_the_row_itself(policy: Policy) -> None:
    row = painted([[10, 20, 30, 60], [5, 5, 50, 50]])
    for seed in range(30):
        result = augment(row, policy=policy, strength=0, rng=np.random.default_rng(seed), draw_partner=nobody)
        assert equal(result, row)


def test_policy_a_is_the_row_itself() -> None:
    row = painted([[10, 20, 30, 60]])
    assert equal(augment(row, policy="A", strength=1, rng=np.random.default_rng(0), draw_partner=nobody), row)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_generator_decides_everything(policy: Policy) -> None:
    row = painted([[10, 20, 30, 60], [5, 5, 50, 50]], first_label=12)
    for seed in range(20):
        once, again = (
            augment(row, policy=policy, strength=0.8, rng=np.random.default_rng(seed), draw_partner=a_partner)
            for _ in range(2)
        )
        assert equal(once, again)


@pytest.mark.parametrize("name", NAMES)
def test_arguments_are_not_changed(name: TransformName) -> None:
    row, partner = painted([[10, 20, 30, 60], [5, 5, 50, 50]]), painted([[30, 40, 60, 60]], first_label=4)
    for source in (row, partner):
        for value in source.values():
            if isinstance(value, np.ndarray):
                value.setflags(write=False)
    before = painted([[10, 20, 30, 60], [5, 5, 50, 50]])
    for seed in range(20):
        rng = np.random.default_rng(seed)
        apply_transform(name, row, strength=1, rng=rng, draw_partner=lambda rng: partner)
    assert equal(row, before)


@pytest.mark.parametrize("name", NAMES)
def test_row_without_boxes_survives(name: TransformName) -> None:
    empty = painted([])
    for seed in range(20):
        rng = np.random.default_rng(seed)
        result = apply_transform(name, empty, strength=1, rng=rng, draw_partner=lambda rng: empty)
        assert result["boxes"].shape == (0, 4)
        assert result["boxes"].dtype == np.float32
        assert result["labels"].shape == result["readers"].shape == (0,)
        assert result["labels"].dtype == np.int64
        assert result["image_id"] == "base"


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    boxes=st.lists(rectangles(), max_size=6),
    seed=st.integers(0, 10**6),
    strength=st.floats(0, 1),
)
def test_rows_stay_consistent(name: TransformName, boxes: list, seed: int, strength: float) -> None:
    result = apply_transform(
        name,
        painted(boxes),
        strength=strength,
        rng=np.random.default_rng(seed),
        draw_partner=lambda rng: painted(boxes[::-1], first_label=3),
    )
    corners = result["boxes"]
    assert len(corners) == len(result["labels"]) == len(result["readers"])
    assert np.isfinite(corners).all()
    assert (corners >= 0).all()
    assert (corners <= SIDE).all()
    assert (corners[:, 2:] - corners[:, :2] >= geometry.MIN_SIDE).all()
    assert set(result) == set(Row.__annotations__)


@pytest.mark.parametrize(
    ("policy", "labels", "strength", "expected"),
    [
        ("A", [1], 1, {"original": 1}),
        ("B", [1], 1, {"original": 1 / 4, "rotate90": 1 / 4, "hflip": 1 / 4, "zoom": 1 / 4}),
        ("B", [], 0.4, {"original": 0.7, "rotate90": 0.1, "hflip": 0.1, "zoom": 0.1}),
        ("C", [], 1, dict.fromkeys(draws_of("C", []), 1 / 7)),
        ("D", [3, 12], 1, dict.fromkeys(draws_of("C", []), 1 / 7)),
        ("D", [0, 3, 13], 1, {"original": 1}),
        ("D", [], 1, {"original": 1}),
        ("E", [], 0.1, {"competitors": 1}),
    ],
)
def test_draws_have_the_materialised_data_sets_shares(
    policy: Policy, labels: list[int], strength: float, expected: dict[TransformName, float]
) -> None:
    rng = np.random.default_rng(11)
    draws = 4_000
    counts = Counter(draw_transform(policy, labels, strength=strength, rng=rng) for _ in range(draws))
    assert set(counts) == set(expected)
    for name, share in expected.items():
        # Four standard deviations of a binomial count.
        assert abs(counts[name] - draws * share) <= 4 * np.sqrt(draws * share * (1 - share))


def test_number_of_draws_is_the_studys_multiplicity() -> None:
    assert [len(draws_of(policy, [0])) for policy in POLICIES] == [1, 4, 7, 1, 1]
    assert [len(draws_of(policy, [0, 1])) for policy in POLICIES] == [1, 4, 7, 7, 1]


def test_policy_d_leaves_rows_without_rare_labels_alone() -> None:
    common, rare = painted([[10, 20, 30, 60]], first_label=3), painted([[10, 20, 30, 60]], first_label=12)
    changed = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        assert equal(augment(common, policy="D", strength=1, rng=rng, draw_partner=nobody), common)
        result = augment(rare, policy="D", strength=1, rng=rng, draw_partner=a_partner)
        changed += not equal(result, rare)
    assert 40 <= changed <= 60


def test_brightness_changes_are_bounded() -> None:
    ramp = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1))
    np.testing.assert_array_equal(intensity.brightness_contrast(ramp, brightness=0, contrast=0), ramp)
    brighter = intensity.brightness_contrast(ramp, brightness=0.25, contrast=0).astype(int)
    assert (brighter - ramp)[:, :40].max() == 64
    assert brighter.max() == 255
    flat = intensity.brightness_contrast(ramp, brightness=0, contrast=-0.25)
    assert flat.std() == pytest.approx(0.75 * ramp.std(), rel=0.01)
    noisy = intensity.noise(ramp, sigma=8, rng=np.random.default_rng(0)).astype(float)
    assert np.std((noisy - ramp)[:, 15:50]) == pytest.approx(8, rel=0.1)


def test_pixel_transforms_agree_with_albumentations() -> None:
    import albumentations as A

    image = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
    reference = A.CLAHE(clip_limit=(2.0, 2.0), tile_grid_size=(8, 8), p=1)(image=image)["image"]
    np.testing.assert_array_equal(intensity.clahe(image, strength=1), reference)
    np.testing.assert_array_equal(intensity.clahe(image, strength=0), image)
    zoom = A.Affine(scale=(1.1, 1.1), p=1)(image=image)["image"]
    row = painted([]) | {"image": image}
    ours = geometry.scale_and_shift(row, scale=1.1)["image"]
    assert np.abs(ours.astype(int) - zoom).mean() < 2
