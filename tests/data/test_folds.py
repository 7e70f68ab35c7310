from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.real_data import competition_rows
from vbd.data.labelling.folds import assign_folds, fold_table
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


def some_groups(ids: list[str]) -> dict[str, str]:
    """One image in twenty, in groups of two to five."""
    rng = np.random.default_rng(9)
    picked = rng.permutation(ids)[: len(ids) // 20].tolist()
    groups: dict[str, str] = {}
    while picked:
        size = int(rng.integers(2, 6))
        groups |= dict.fromkeys(picked[:size], picked[0])
        picked = picked[size:]
    return groups


def test_groups_stay_together_and_folds_stay_even() -> None:
    ids, labels, trios = made_up()
    groups = some_groups(ids)
    folds = assign_folds(ids, labels, trios, num_folds=5, seed=0, groups=groups)
    for group in set(groups.values()):
        assert len({folds[image_id] for image_id, name in groups.items() if name == group}) == 1
    table = fold_table(folds, labels, trios, groups=groups).drop(columns="near-duplicates")
    shares = table.sum() / 5
    assert ((table - shares).abs() <= np.maximum(3, 0.12 * shares)).all(axis=None)


def test_a_giant_group_has_its_fold_and_the_rest_is_even() -> None:
    ids, labels, trios = made_up()
    giant = np.random.default_rng(2).permutation(ids)[:180].tolist()
    folds = assign_folds(ids, labels, trios, num_folds=5, seed=0, groups=dict.fromkeys(giant, "giant"))
    home = folds[giant[0]]
    assert {folds[image_id] for image_id in giant} == {home}
    table = fold_table(folds, labels, trios)
    others = table.drop(index=home)
    assert table["images"][home] <= 190
    assert ((others - others.mean()).abs() <= np.maximum(3, 0.12 * others.mean())).all(axis=None)


def test_a_group_may_have_the_name_of_an_image_that_is_not_in_it() -> None:
    ids = [f"i{number}" for number in range(8)]
    folds = assign_folds(ids, {}, {}, num_folds=8 - 1, seed=0, groups={"i1": "i0", "i2": "i0"})
    assert folds["i1"] == folds["i2"] != folds["i0"]


def test_names_of_groups_do_not_matter() -> None:
    ids, labels, trios = made_up(150)
    groups = some_groups(ids)
    renamed = {image_id: name[::-1] for image_id, name in groups.items()}
    folds = assign_folds(ids, labels, trios, num_folds=3, seed=0, groups=groups)
    assert assign_folds(ids, labels, trios, num_folds=3, seed=0, groups=renamed) == folds


def test_table_counts_the_images_that_have_a_near_duplicate() -> None:
    groups = {"a": "a", "b": "a", "c": "c", "d": "a test image", "e": "e", "f": "e"}
    table = fold_table({"a": 0, "b": 0, "c": 0, "d": 1, "e": 1, "f": 1}, {}, {}, groups=groups)
    assert table["near-duplicates"].tolist() == [2, 2]
    assert table["images"].tolist() == [3, 3]
    assert fold_table({"a": 0, "b": 1}, {}, {})["near-duplicates"].tolist() == [0, 0]


def test_table_of_no_images_is_empty() -> None:
    assert fold_table({}, {}, {}).empty


def test_folds_of_the_competition_differ_by_hardly_an_image() -> None:
    rows = competition_rows()
    found = rows[rows["label"] < 14]
    labels = found.groupby("image_id")["label"].agg(set).to_dict()
    trios = rows.groupby("image_id")["rad_id"].agg(lambda names: tuple(sorted(set(names)))).to_dict()
    folds = assign_folds(trios, labels, trios, num_folds=5, seed=0)
    table = fold_table(folds, labels, trios)
    assert table["images"].sum() == 15_000
    assert table["normal"].sum() == 10_606
    assert table["read by R10+R8+R9"].sum() == 5_501
    assert ((table - table.mean()).abs() <= np.maximum(2, 0.01 * table.mean())).all(axis=None)
    # Each set of labels is spread too, among the trio's images and among the others'.
    held = Counter((frozenset(labels.get(i, ())), trios[i] == BIG, fold) for i, fold in folds.items())
    for kind in {(found, is_big) for found, is_big, _ in held}:
        counts = [held[*kind, fold] for fold in range(5)]
        assert max(counts) - min(counts) <= 1, kind


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
    with pytest.raises(InputError, match=f"--folds {num_folds}: too many or too few for {count} training images"):
        assign_folds([str(n) for n in range(count)], {}, {}, num_folds=num_folds, seed=0)


def test_more_folds_than_groups_are_told() -> None:
    groups = {"a": "a", "b": "a", "c": "a", "d": "d"}
    with pytest.raises(
        InputError,
        match="--folds 3: too many or too few for 4 training images in 2 groups of near-duplicates; want 2 to 2",
    ):
        assign_folds(groups, {}, {}, num_folds=3, seed=0, groups=groups)
    with pytest.raises(InputError, match="in 1 groups of near-duplicates; there must be 2 or more"):
        assign_folds("ab", {}, {}, num_folds=2, seed=0, groups={"a": "a", "b": "a"})


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sets(st.integers(0, 13), max_size=3), st.integers(0, 5)), min_size=6, max_size=40))
def test_groups_are_never_split_and_no_fold_is_empty(images: list[tuple[set[int], int]]) -> None:
    labels = {f"i{number}": held for number, (held, _) in enumerate(images)}
    groups = {f"i{number}": str(group) for number, (_, group) in enumerate(images) if group}
    units = {groups.get(image_id, image_id) for image_id in labels}
    if len(units) < 2:
        return
    count = min(4, len(units))
    folds = assign_folds(labels, labels, {}, num_folds=count, seed=1, groups=groups)
    assert set(folds.values()) == set(range(count))
    assert len({(group, folds[image_id]) for image_id, group in groups.items()}) == len(set(groups.values()))
