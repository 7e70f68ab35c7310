from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vbd.data.folds import assign_folds, fold_table
from vbd.errors import InputError

BIG = ("R10", "R8", "R9")


def made_up(count: int = 600) -> tuple[list[str], dict[str, set[int]], dict[str, tuple[str, ...]]]:
    """Ids, label sets and trios in which the big trio's images are mostly abnormal, as in the real data."""
    rng = np.random.default_rng(5)
    ids = [f"image{number:04d}" for number in range(count)]
    labels: dict[str, set[int]] = {}
    trios = {}
    for image_id in ids:
        is_big = rng.random() < 0.4
        trios[image_id] = BIG if is_big else tuple(rng.choice([f"R{n}" for n in range(1, 8)], 3, replace=False))
        if rng.random() < (0.75 if is_big else 0.03):
            labels[image_id] = set(rng.choice(14, rng.integers(1, 5)).tolist())
    return ids, labels, trios


def test_each_fold_holds_its_share_of_every_label_and_of_the_trio() -> None:
    ids, labels, trios = made_up()
    table = fold_table(assign_folds(ids, labels, trios, num_folds=5, seed=0), labels, trios)
    assert table.index.tolist() == [0, 1, 2, 3, 4]
    assert table["images"].sum() == len(ids)
    assert table["normal"].sum() == len(ids) - len(labels)
    shares = table.sum() / 5
    assert ((table - shares).abs() <= np.maximum(3, 0.12 * shares)).all(axis=None)
    assert "read by R10+R8+R9" in table.columns


def test_normal_images_are_balanced_within_the_trio() -> None:
    ids, labels, trios = made_up()
    folds = assign_folds(ids, labels, trios, num_folds=5, seed=0)
    counts = Counter(folds[i] for i in ids if trios[i] == BIG and i not in labels)
    assert max(counts.values()) - min(counts.values()) <= 3


def test_order_of_the_images_does_not_matter_and_the_seed_does() -> None:
    ids, labels, trios = made_up(120)
    folds = assign_folds(ids, labels, trios, num_folds=4, seed=7)
    assert assign_folds(ids[::-1], labels, trios, num_folds=4, seed=7) == folds
    assert list(folds) == sorted(ids)
    assert assign_folds(ids, labels, trios, num_folds=4, seed=8) != folds


def test_global_random_state_is_neither_used_nor_changed() -> None:
    ids, labels, trios = made_up(60)
    np.random.seed(1)
    first = assign_folds(ids, labels, trios, num_folds=3, seed=0)
    after = np.random.random()
    np.random.seed(1)
    assert np.random.random() == after
    np.random.seed(2)
    assert assign_folds(ids, labels, trios, num_folds=3, seed=0) == first


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sets(st.integers(0, 13), max_size=4), min_size=2, max_size=14),
    st.integers(2, 6),
    st.integers(-5, 2**40),
)
def test_no_fold_is_empty(label_sets: list[set[int]], num_folds: int, seed: int) -> None:
    labels = {f"i{number}": held for number, held in enumerate(label_sets)}
    folds = min(num_folds, len(labels))
    assigned = assign_folds(labels, labels, {}, num_folds=folds, seed=seed)
    assert set(assigned) == set(labels)
    assert set(assigned.values()) == set(range(folds))


@pytest.mark.parametrize(("num_folds", "count"), [(5, 4), (1, 4), (2, 0), (2, 1)])
def test_impossible_number_of_folds_is_told(num_folds: int, count: int) -> None:
    with pytest.raises(InputError, match=f"num_folds is {num_folds} for {count} training images"):
        assign_folds([str(n) for n in range(count)], {}, {}, num_folds=num_folds, seed=0)
