"""The parts of a prepared dataset: as users name them, and which of them hold some images."""

from collections import Counter
from collections.abc import Iterable, Sequence

from vbd.data import prepared
from vbd.data.prepared import TEST_FOLD, Part, PreparedDataset, read_rows, read_truths
from vbd.errors import InputError
from vbd.records import Truth


def parse_part(text: str | None) -> Part | None:
    """The part that a user names, as `prepared.parse_part`; None, for whichever holds the images, stays None."""
    return None if text is None else prepared.parse_part(text)


def parts_holding(image_ids: Iterable[str], dataset: PreparedDataset, *, name: str) -> tuple[Part, ...]:
    """The test part, or all folds that hold one of the images; () where the dataset knows none of them.

    Raises InputError, which begins with the `name` of what holds the images, when they are of both.
    """
    known = fold_of_image(dataset)
    counts = Counter(known[image_id] for image_id in image_ids if image_id in known)
    if TEST_FOLD in counts and len(counts) > 1:
        in_test = counts.pop(TEST_FOLD)
        raise InputError(
            f"{name}: holds {in_test:,} images of the test part and {counts.total():,} of training folds; choose one of "
            "them with --part test or --part train"
        )
    return parts_of_folds(sorted(counts)) if counts else ()


def fold_of_image(dataset: PreparedDataset) -> dict[str, int]:
    """The fold of each image; `TEST_FOLD` for those of the test part."""
    table = read_rows(dataset, ["image_id", "fold"])
    return dict(zip(table["image_id"].to_pylist(), table["fold"].to_pylist(), strict=True))


def truths_of(parts: Sequence[Part], dataset: PreparedDataset) -> list[Truth]:
    """The truths of some parts, by image id."""
    return sorted((truth for part in parts for truth in read_truths(dataset, part)), key=lambda t: t.image_id)


def parts_of_folds(folds: Sequence[int]) -> tuple[Part, ...]:
    """The parts that folds are; the test part alone where `TEST_FOLD` is among them."""
    return ("test",) if TEST_FOLD in folds else tuple(folds)


def in_words(parts: Sequence[Part]) -> str:
    """The name of some parts of a dataset."""
    if parts[0] in ("test", "train"):
        return f"{parts[0]} part"
    return f"fold{'s' if len(parts) > 1 else ''} {', '.join(map(str, parts))}"
