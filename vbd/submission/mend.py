"""What each defect of a submission costs: mended where that can be done by rule, and scored."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vbd.boxes import has_area, to_original
from vbd.config import ResizeMode
from vbd.evaluation.average_precision import Scores, score_flat
from vbd.evaluation.matching import FlatBoxes, flatten
from vbd.labels import NO_FINDING, NO_FINDING_BOX
from vbd.records import Truth
from vbd.submission.check import Sheet, counts_from_one, faults, known_id, sheet_of, sizes_of, with_values
from vbd.submission.file import MIN_CONFIDENCE, Line, class_and_score_problems
from vbd.submission.signs import Resized, whole_confidence

_NORMAL = np.array([[NO_FINDING, 1.0, *NO_FINDING_BOX]])


@dataclass(frozen=True)
class Case:
    """What is known of a submission when it is mended."""

    image_ids: Sequence[str]
    original_hw: Mapping[str, tuple[int, int]]
    resized: Resized | None
    resize: ResizeMode  # how the originals were made square


@dataclass(frozen=True)
class Mended:
    """The file without a defect, and what was done; no sheet, and why, where no rule can mend it."""

    sheet: Sheet | None
    how: str


def score_sheet(sheet: Sheet, truths: Sequence[Truth]) -> Scores:
    """Scores of what can be read of a file: the first row of each image that has a truth, classes 0 to 14."""
    index = {truth.image_id: place for place, truth in enumerate(truths)}
    image_of = np.full(len(sheet.lines), -1)
    for place, line in enumerate(sheet.lines):
        image_of[place] = index.pop(line.image_id, -1)
    images = image_of[sheet.line_of]
    rows = np.flatnonzero((images >= 0) & (sheet.is_finding | sheet.is_whole))
    found = FlatBoxes(
        images=images[rows],
        labels=sheet.values[rows, 0].astype(np.int64),
        boxes=sheet.boxes[rows],
        scores=sheet.scores[rows],
    )
    return score_flat(found, flatten([], truths)[1], len(truths))


def mend(kind: str, sheet: Sheet, case: Case) -> Mended:
    """A file without one of its kinds of defects, everything else as it was."""
    return _MENDS[kind](sheet, case)


# ---------------------------------------------------------------------------------------------------------------- rows


def _header(sheet: Sheet, case: Case) -> Mended:
    return Mended(replace(sheet, header=""), "the rows are scored here all the same; the competition refuses the file")


def _unknown_image(sheet: Sheet, case: Case) -> Mended:
    wanted, taken = set(case.image_ids), {line.image_id for line in sheet.lines}
    lines = []
    for line in sheet.lines:
        meant = known_id(line.image_id, wanted - taken)
        if line.image_id in wanted or meant:
            lines.append(replace(line, image_id=meant or line.image_id))
    return Mended(sheet_of(lines, sheet.header), "endings taken off, rows of other images removed")


def _missing_image(sheet: Sheet, case: Case) -> Mended:
    there = {line.image_id for line in sheet.lines}
    added = [Line(0, image_id, _NORMAL) for image_id in case.image_ids if image_id not in there]
    return Mended(sheet_of([*sheet.lines, *added], sheet.header), "as normal images; what was found there is not known")


def _duplicate_image(sheet: Sheet, case: Case) -> Mended:
    merged: dict[str, Line] = {}
    for line in sheet.lines:
        first = merged.get(line.image_id)
        if first is None or first.kind or line.kind:
            merged.setdefault(line.image_id, line)
        else:
            merged[line.image_id] = replace(first, values=_once(np.concatenate([first.values, line.values])))
    return Mended(sheet_of(list(merged.values()), sheet.header), "all boxes of an image put into its first row")


def _once(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The predictions of one image with the most confident class 14 alone."""
    whole = np.flatnonzero(values[:, 0] == NO_FINDING)
    best = whole[np.argmax(values[whole, 1])] if len(whole) else -1
    return np.delete(values, whole[whole != best], axis=0)


def _no_prediction(sheet: Sheet, case: Case) -> Mended:
    lines = [replace(line, values=_NORMAL, kind="") if line.kind == "no_prediction" else line for line in sheet.lines]
    return Mended(sheet_of(lines, sheet.header), "as normal images; what was found there is not known")


def _not_a_number(sheet: Sheet, case: Case) -> Mended:
    lines = []
    for line in sheet.lines:
        kept = line.values[np.isfinite(line.values).all(1)]
        lines.append(replace(line, values=kept, kind="") if line.kind == "not_a_number" else line)
    return Mended(sheet_of(lines, sheet.header), "the predictions with other values left out")


def _not_six(sheet: Sheet, case: Case) -> Mended:
    """Cut off what is left over at the end, in rows that make sense so far; a value lost in the middle shifts all others."""
    mended = [line.number for line in sheet.lines if line.kind == "not_six" and _makes_sense(line.values)]
    broken = sum(line.kind == "not_six" for line in sheet.lines)
    if not mended:
        return Mended(None, "which value is missing or too many is not known")
    lines = [replace(line, kind="") if line.number in mended else line for line in sheet.lines]
    rest = (
        "" if len(mended) == broken else f", in {len(mended)} of {broken} rows; in the others the values make no sense"
    )
    return Mended(sheet_of(lines, sheet.header), f"what is left over at the end of a row cut off{rest}")


def _makes_sense(values: NDArray[np.float64]) -> bool:
    sides = values[:, 4:] - values[:, 2:4]
    problems = [mask.any() for mask, _ in class_and_score_problems(values).values()]
    return bool(len(values)) and not any(problems) and bool((sides > 0).all())


# --------------------------------------------------------------------------------------------------------- predictions


def _unknown_class(sheet: Sheet, case: Case) -> Mended:
    if not counts_from_one(sheet):
        return Mended(None, "which class is meant is not known; removing them changes nothing")
    values = sheet.values.copy()
    values[:, 0] -= 1
    return Mended(with_values(sheet, values), "1 taken from every class")


def _score_range(sheet: Sheet, case: Case) -> Mended:
    """Percents in the rows that hold one, or in all of them where most do; findings and class 14 apart."""
    values, line_of = sheet.values.copy(), sheet.line_of
    for part in (sheet.is_finding, sheet.is_whole):
        high = np.unique(line_of[part & (values[:, 1] > 1)])
        if len(high):
            scaled = part if 2 * len(high) > len(np.unique(line_of[part])) else part & np.isin(line_of, high)
            values[scaled, 1] /= max(100.0, values[scaled, 1].max())
    values[:, 1] = np.clip(values[:, 1], MIN_CONFIDENCE, 1)
    return Mended(
        with_values(sheet, values),
        f"scores above 1 read as percents, those of 0 and less written as {MIN_CONFIDENCE:g}",
    )


def _corners(sheet: Sheet, case: Case) -> Mended:
    values, wrong = sheet.values.copy(), faults(sheet, case.original_hw)["corners"]
    boxes = values[wrong, 2:].reshape(-1, 2, 2)
    values[wrong, 2:] = np.sort(boxes, axis=1).reshape(-1, 4)
    return Mended(with_values(sheet, values), "corners put in order")


def _one_pixel(sheet: Sheet, case: Case) -> Mended:
    return Mended(with_values(sheet, sheet.values, ~faults(sheet, case.original_hw)["one_pixel"]), "removed")


def _outside_image(sheet: Sheet, case: Case) -> Mended:
    values, wrong = sheet.values.copy(), faults(sheet, case.original_hw)["outside_image"]
    limits = np.tile(sizes_of(sheet, case.original_hw)[sheet.line_of][:, ::-1], 2)
    values[wrong, 2:] = np.clip(values[wrong, 2:], 0, limits[wrong])
    return Mended(with_values(sheet, values, ~wrong | has_area(values[:, 2:])), "cut at the border")


def _resized(sheet: Sheet, case: Case) -> Mended:
    resized = case.resized
    assert resized is not None
    values, finding = sheet.values.copy(), sheet.is_finding
    lines = np.array([place for place, line in enumerate(sheet.lines) if line.number in resized.numbers], np.int64)
    for row, start, end in zip(lines, *np.searchsorted(sheet.line_of, [lines, lines + 1]), strict=True):
        rows = np.arange(start, end)[finding[start:end]]
        hw = case.original_hw[sheet.lines[row].image_id]
        values[rows, 2:] = to_original(values[rows, 2:], hw, resized.side, case.resize)
    return Mended(with_values(sheet, values), f"to original pixels, as images that were resized by {case.resize}")


def _whole_image_box(sheet: Sheet, case: Case) -> Mended:
    values = sheet.values.copy()
    values[sheet.is_whole, 2:] = NO_FINDING_BOX
    return Mended(with_values(sheet, values), "0 0 1 1 written")


def _whole_image_twice(sheet: Sheet, case: Case) -> Mended:
    rows, p = whole_confidence(sheet)
    return Mended(_with_whole(sheet, rows, p), "the most confident one kept")


def _no_whole_image(sheet: Sheet, case: Case) -> Mended:
    return Mended(_with_whole(sheet, *_by_best_box(sheet)), "p = 1 - the highest score of the row")


def _whole_image_reversed(sheet: Sheet, case: Case) -> Mended:
    rows, p = whole_confidence(sheet)
    return Mended(_with_whole(sheet, rows, 1 - p), "1 - p written")


def _scores_equal(sheet: Sheet, case: Case) -> Mended:
    return Mended(None, "the scores are lost; only the model can tell them")


def _by_best_box(sheet: Sheet) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Every line that can be read, and how likely its image is normal by its best box."""
    best = np.zeros(len(sheet.lines))
    finding = sheet.is_finding
    np.maximum.at(best, sheet.line_of[finding], sheet.values[finding, 1])
    rows = np.array([place for place, line in enumerate(sheet.lines) if not line.kind], np.int64)
    return rows, 1 - best[rows]


def _with_whole(sheet: Sheet, rows: NDArray[np.int64], p: NDArray[np.float64]) -> Sheet:
    """The file with class 14 once in the given rows, and nowhere else."""
    added = np.column_stack(
        [np.full(len(rows), NO_FINDING), np.clip(p, MIN_CONFIDENCE, 1), *np.tile(NO_FINDING_BOX, (len(rows), 1)).T]
    )
    kept = ~sheet.is_whole
    values, line_of = np.concatenate([sheet.values[kept], added]), np.concatenate([sheet.line_of[kept], rows])
    order = np.argsort(line_of, kind="stable")
    return replace(sheet, values=values[order], line_of=line_of[order])


_MENDS: dict[str, Callable[[Sheet, Case], Mended]] = {
    "header": _header,
    "unknown_image": _unknown_image,
    "missing_image": _missing_image,
    "duplicate_image": _duplicate_image,
    "no_prediction": _no_prediction,
    "not_a_number": _not_a_number,
    "not_six": _not_six,
    "unknown_class": _unknown_class,
    "score_range": _score_range,
    "corners": _corners,
    "one_pixel": _one_pixel,
    "outside_image": _outside_image,
    "resized": _resized,
    "whole_image_box": _whole_image_box,
    "whole_image_twice": _whole_image_twice,
    "no_whole_image": _no_whole_image,
    "whole_image_reversed": _whole_image_reversed,
    "whole_image_equal": _no_whole_image,
    "scores_equal": _scores_equal,
}
