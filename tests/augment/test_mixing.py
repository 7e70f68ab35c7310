import numpy as np

from vbd.augment.mixing import cutmix, mosaic
from vbd.boxes import as_boxes
from vbd.records import Row

SIDE = 64


def grey(level: int, boxes: list, label: int = 0) -> Row:
    corners = as_boxes(boxes)
    return Row(
        image_id=f"grey{level}",
        fold=2,
        image=np.full((SIDE, SIDE), level, np.uint8),
        original_hw=np.array([300, 200]),
        boxes=corners,
        labels=np.full(len(corners), label, np.int64),
        readers=np.ones(len(corners), np.int64),
    )


def test_mosaic_without_strength_is_four_equal_quarters() -> None:
    rows = [grey(level, [[0, 0, SIDE, SIDE]], label) for label, level in enumerate((50, 100, 150, 200))]
    mixed = mosaic(rows, strength=0, rng=np.random.default_rng(1))
    assert sorted(np.unique(mixed["image"], return_counts=True)[1].tolist()) == [SIDE * SIDE // 4] * 4
    assert mixed["image_id"] == "grey50"
    assert sorted(map(tuple, mixed["boxes"].tolist())) == [
        (0, 0, 32, 32),
        (0, 32, 32, 64),
        (32, 0, 64, 32),
        (32, 32, 64, 64),
    ]
    for box, label in zip(mixed["boxes"].astype(int), mixed["labels"], strict=True):
        assert mixed["image"][box[1], box[0]] == rows[label]["image"][0, 0]


def test_mosaic_puts_each_row_into_every_quarter_and_moves_its_centre() -> None:
    rows = [grey(level, []) for level in (50, 100, 150, 200)]
    corners, centres = set(), set()
    for seed in range(60):
        image = mosaic(rows, strength=1, rng=np.random.default_rng(seed))["image"]
        assert sorted(np.unique(image)) == [50, 100, 150, 200]
        corners.add(int(image[0, 0]))
        centres.add(int((image[0] == image[0, 0]).sum()))
    assert corners == {50, 100, 150, 200}
    assert min(centres) >= SIDE / 4
    assert max(centres) <= 3 * SIDE / 4
    assert len(centres) > 10


def patch_of(image: np.ndarray, level: int) -> list[int]:
    rows, columns = np.nonzero(image == level)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_cutmix_pastes_a_rectangle_with_its_boxes() -> None:
    base, partner = grey(50, []), grey(200, [[0, 0, SIDE, SIDE]], label=7)
    sides = []
    for seed in range(60):
        mixed = cutmix(base, partner, strength=1, rng=np.random.default_rng(seed))
        patch = patch_of(mixed["image"], 200)
        assert (mixed["image"][patch[1] : patch[3], patch[0] : patch[2]] == 200).all()
        area = (patch[2] - patch[0]) * (patch[3] - patch[1])
        if area >= 0.25 * SIDE * SIDE:
            assert mixed["boxes"].tolist() == [patch]
            assert mixed["labels"].tolist() == [7]
        else:
            assert mixed["boxes"].shape == (0, 4)
        sides.append(patch[2] - patch[0])
    assert min(sides) >= round(0.2 * SIDE)
    assert max(sides) <= round(0.7 * SIDE)


def test_cutmix_drops_what_it_covers_and_trims_what_it_cuts() -> None:
    partner = grey(200, [])
    for seed in range(40):
        rng = np.random.default_rng(seed)
        left, top, right, bottom = patch_of(cutmix(grey(50, []), partner, strength=1, rng=rng)["image"], 200)
        inside = [left + 1, top + 1, right - 1, bottom - 1]
        whole = [0, 0, SIDE, SIDE]
        # As high as the patch, half under it and half to one side of it.
        width = min(8, (right - left) // 2, max(left, SIDE - right))
        edge, is_left = (left, True) if left >= width else (right, False)
        straddling = [edge - width, top, edge + width, bottom]
        base = grey(50, [inside, whole, straddling])
        mixed = cutmix(base, partner, strength=1, rng=np.random.default_rng(seed))
        trimmed = [edge - width, top, edge, bottom] if is_left else [edge, top, edge + width, bottom]
        assert mixed["boxes"].tolist() == [whole, trimmed]
