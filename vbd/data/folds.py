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
# The stratifier settles ties by chance and spreads the labels it comes to last unevenly: the best of so many runs.
_TRIES = 8


def assign_folds(
    image_ids: Iterable[str],
    label_sets: Mapping[str, Collection[int]],
    trios: Mapping[str, tuple[str, ...]],
    *,
    num_folds: int,
    seed: int,
) -> dict[str, int]:
    """Fold 0..num_folds-1 of each image, in the order of the sorted ids; the order of `image_ids` does not matter.

    Iterative stratification (Sechidis et al. 2011) over the 14 labels and over (trio of readers, normal or not). An
    image that `label_sets` does not know is normal; one that `trios` does not know was read by "nobody".
    Raises InputError when there are fewer images than folds.
    """
    ids = sorted(set(image_ids))
    if not 2 <= num_folds <= len(ids):
        raise InputError(f"num_folds is {num_folds} for {len(ids)} training images; want 2 to {len(ids)}")
    traits = _traits(ids, label_sets, trios)
    rng = np.random.default_rng([seed % 2**64])
    tries = [_stratified(traits, num_folds, seed=int(rng.integers(2**32))) for _ in range(_TRIES)]
    best = min(tries, key=lambda folds: _imbalance(folds, traits, num_folds))
    return dict(zip(ids, best.tolist(), strict=True))


def fold_table(
    folds: Mapping[str, int], label_sets: Mapping[str, Collection[int]], trios: Mapping[str, tuple[str, ...]]
) -> "pd.DataFrame":
    """What each fold holds: one row per fold, counts of images in all, normal, per class and per frequent trio."""
    import pandas as pd

    ids = sorted(folds)
    labels = _label_columns(ids, label_sets)
    groups = _groups(ids, trios)
    columns = {"images": np.ones(len(ids), bool), "normal": np.logical_not(_is_abnormal(labels))}
    columns |= {name: labels[:, label] for label, name in enumerate(CLASS_NAMES)}
    columns |= {f"read by {name}": np.array([group == name for group in groups], bool) for name in sorted(set(groups))}
    fold_of = np.array([folds[image_id] for image_id in ids], np.int64)
    return pd.DataFrame(columns).astype(np.int64).groupby(fold_of).sum().rename_axis("fold")


def _traits(
    ids: list[str], label_sets: Mapping[str, Collection[int]], trios: Mapping[str, tuple[str, ...]]
) -> NDArray[np.bool_]:
    """Indicator columns to balance, (images, 14 + groups): labels, and each kind of readers with normal or abnormal."""
    labels = _label_columns(ids, label_sets)
    kinds = list(zip(_groups(ids, trios), _is_abnormal(labels).tolist(), strict=True))
    # In one column apart, "normal" would be balanced over all readers but not within the trio that matters.
    columns = [[kind == wanted for kind in kinds] for wanted in sorted(set(kinds))]
    return np.concatenate([labels, np.array(columns, bool).T], axis=1)


def _label_columns(ids: list[str], label_sets: Mapping[str, Collection[int]]) -> NDArray[np.bool_]:
    held = np.zeros((len(ids), NUM_FINDINGS), bool)
    for row, image_id in enumerate(ids):
        held[row, list(label_sets.get(image_id, ()))] = True
    return held


def _is_abnormal(held: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return np.logical_or.reduce(held, axis=1)


def _groups(ids: list[str], trios: Mapping[str, tuple[str, ...]]) -> list[str]:
    """The name of each image's readers: a frequent trio's own, "others", or "nobody"."""
    names = ["+".join(sorted(set(trios.get(image_id, ())))) or "nobody" for image_id in ids]
    counts = Counter(names)
    return [name if counts[name] >= FREQUENT_SHARE * len(ids) else "others" for name in names]


def _stratified(traits: NDArray[np.bool_], num_folds: int, *, seed: int) -> NDArray[np.int64]:
    """One run of the stratifier, which settles ties by chance: (images, traits) -> (images,)."""
    from iterstrat.ml_stratifiers import MultilabelStratifiedKFold  # loads sklearn: 1 s

    splitter = MultilabelStratifiedKFold(num_folds, shuffle=True, random_state=seed)
    folds = np.zeros(len(traits), np.int64)
    for fold, (_, held_out) in enumerate(splitter.split(np.zeros(len(traits)), traits)):
        folds[held_out] = fold
    # With hardly more images than folds it can leave a fold empty: that one gets an image of the largest.
    for fold in range(num_folds):
        sizes = np.bincount(folds, minlength=num_folds)
        if sizes[fold] == 0:
            folds[np.flatnonzero(folds == sizes.argmax())[0]] = fold
    return folds


def _imbalance(folds: NDArray[np.int64], traits: NDArray[np.bool_], num_folds: int) -> float:
    """Chi-square distance of the folds' counts of each trait, and of their sizes, from equal ones."""
    counted = np.concatenate([traits, np.ones((len(traits), 1), bool)], axis=1)
    counts = np.stack([counted[folds == fold].sum(axis=0) for fold in range(num_folds)])
    wanted = np.maximum(counts.sum(axis=0) / num_folds, 1 / num_folds)
    return float(((counts - wanted) ** 2 / wanted).sum())
