"""Which images are held out together: folds that look alike in their labels and in who read them."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vbd.errors import InputError
from vbd.labels import CLASS_NAMES, NUM_FINDINGS

if TYPE_CHECKING:
    import pandas as pd

# A trio that read at least this share of the images is balanced by itself, the others together. In the real data it is
# R8, R9 and R10 alone: three quarters of that trio's images are abnormal, against 3 % of the rest.
FREQUENT_SHARE = 0.05
# Shares are compared as whole numbers of 2^-32, so that folds are the same on every machine.
_UNIT = 2**32


class TooFewError(InputError):
    """There are fewer images, or groups of them, than folds."""


def assign_folds(
    image_ids: Iterable[str],
    label_sets: Mapping[str, Collection[int]],
    trios: Mapping[str, tuple[str, ...]],
    *,
    num_folds: int,
    seed: int,
    groups: Mapping[str, str] | None = None,
) -> dict[str, int]:
    """Fold 0..num_folds-1 of each image, in the order of the sorted ids; the order of `image_ids` does not matter.

    Iterative stratification (Sechidis et al. 2011) over the 14 labels, over (trio of readers, normal or not) and over
    the combinations of both, so that each set of labels is spread too. Images of one group (`groups`: image id -> any
    name; an image that it does not know stands alone) stay in one fold. An image that `label_sets` does not know is
    normal; one that `trios` does not know was read by "nobody".
    Raises TooFewError when there are fewer images, or groups, than folds.
    """
    ids = sorted(set(image_ids))
    units = _units(ids, groups or {})
    if not 2 <= num_folds <= len(units):
        grouped = f" in {len(units)} groups of near-duplicates" if len(units) < len(ids) else ""
        wanted = f"want 2 to {len(units)}" if len(units) >= 2 else "there must be 2 or more to hold one out"
        raise TooFewError(f"--folds {num_folds}: too many or too few for {len(ids)} training images{grouped}; {wanted}")
    chosen = _stratified(_traits(ids, label_sets, trios), units, num_folds, seed=seed)
    fold_of = {row: fold for rows, fold in zip(units, chosen, strict=True) for row in rows}
    return {image_id: fold_of[row] for row, image_id in enumerate(ids)}


def fold_table(
    folds: Mapping[str, int],
    label_sets: Mapping[str, Collection[int]],
    trios: Mapping[str, tuple[str, ...]],
    *,
    groups: Mapping[str, str] | None = None,
) -> "pd.DataFrame":
    """What each fold holds: one row per fold, counts of images in all, normal, per class and per frequent trio.

    `near-duplicates` counts the images that share their group with another image of `folds`.
    """
    import pandas as pd

    ids = sorted(folds)
    labels = _label_columns(ids, label_sets)
    kinds = _reader_kinds(ids, trios)
    group_of = [(groups or {}).get(image_id) for image_id in ids]
    sizes = Counter(group_of)
    columns = {"images": np.ones(len(ids), bool), "normal": np.logical_not(_is_abnormal(labels))}
    columns |= {name: labels[:, label] for label, name in enumerate(CLASS_NAMES)}
    columns |= {f"read by {name}": np.array([kind == name for kind in kinds], bool) for name in sorted(set(kinds))}
    columns["near-duplicates"] = np.array([group is not None and sizes[group] > 1 for group in group_of], bool)
    fold_of = np.array([folds[image_id] for image_id in ids], np.int64)
    return pd.DataFrame(columns).astype(np.int64).groupby(fold_of).sum().rename_axis("fold")


def _units(ids: list[str], groups: Mapping[str, str]) -> list[list[int]]:
    """The rows that stay together, in the order of their first id."""
    together: dict[tuple[bool, str], list[int]] = {}
    for row, image_id in enumerate(ids):
        # A group may have the name of an image that stands alone.
        together.setdefault((image_id in groups, groups.get(image_id, image_id)), []).append(row)
    return list(together.values())


def _traits(
    ids: list[str], label_sets: Mapping[str, Collection[int]], trios: Mapping[str, tuple[str, ...]]
) -> NDArray[np.bool_]:
    """Indicator columns to balance, (images, 15 + kinds): each image, labels, kinds of readers with normal or not."""
    labels = _label_columns(ids, label_sets)
    kinds = list(zip(_reader_kinds(ids, trios), _is_abnormal(labels).tolist(), strict=True))
    # In one column apart, "normal" would be balanced over all readers but not within the trio that matters.
    columns = [[kind == wanted for kind in kinds] for wanted in sorted(set(kinds))]
    return np.concatenate([np.ones((len(ids), 1), bool), labels, np.array(columns, bool).T], axis=1)


def _label_columns(ids: list[str], label_sets: Mapping[str, Collection[int]]) -> NDArray[np.bool_]:
    held = np.zeros((len(ids), NUM_FINDINGS), bool)
    for row, image_id in enumerate(ids):
        held[row, list(label_sets.get(image_id, ()))] = True
    return held


def _is_abnormal(held: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return np.logical_or.reduce(held, axis=1)


def _reader_kinds(ids: list[str], trios: Mapping[str, tuple[str, ...]]) -> list[str]:
    """The name of each image's readers: a frequent trio's own, "others", or "nobody"."""
    names = ["+".join(sorted(set(trios.get(image_id, ())))) or "nobody" for image_id in ids]
    counts = Counter(names)
    return [name if counts[name] >= FREQUENT_SHARE * len(ids) else "others" for name in names]


def _stratified(traits: NDArray[np.bool_], units: list[list[int]], num_folds: int, *, seed: int) -> list[int]:
    """The fold of each unit, rows of `traits` (images, traits) that stay together.

    The heaviest unit goes first, each to the fold that has had the smallest share of what the unit holds; a trait weighs
    as much as it is rare, so that late and light units (normal images) even out the sizes. As every unit counts as an
    image, an empty fold is always the cheapest: none stays empty.
    """
    kinds, kind_of, kind_counts = np.unique(traits, axis=0, return_inverse=True, return_counts=True)
    # What an image of each kind counts for: its traits, and the combination itself.
    columns = np.concatenate([kinds, np.eye(len(kinds), dtype=bool)], axis=1)
    weights = _UNIT * num_folds // np.concatenate([np.maximum(traits.sum(axis=0), 1), kind_counts])
    held: dict[tuple[int, ...], tuple[NDArray, NDArray]] = {}
    signatures = [tuple(sorted(kind_of[rows].tolist())) for rows in units]
    for signature in set(signatures):
        counts = columns[list(signature)].sum(axis=0)
        at = np.flatnonzero(counts)
        held[signature] = at, counts[at]
    load = {signature: int(counts @ weights[at]) for signature, (at, counts) in held.items()}
    rng = np.random.default_rng([seed % 2**64])
    shuffled = rng.permutation(len(units)).tolist()
    filled = np.zeros((num_folds, columns.shape[1]), np.int64)
    folds = [0] * len(units)
    for unit in sorted(shuffled, key=lambda unit: (-load[signatures[unit]], signatures[unit])):
        at, counts = held[signatures[unit]]
        cost = filled[:, at] @ (counts * weights[at])
        cheapest = np.flatnonzero(cost == cost.min())
        fold = int(cheapest[rng.integers(len(cheapest))])
        filled[fold, at] += counts
        folds[unit] = fold
    return folds
