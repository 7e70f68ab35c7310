"""The competition's submission file: written, read back, and examined for what would cost points.

`image_id,PredictionString`; the string holds `class confidence x_min y_min x_max y_max` in pixels of the original
image, one after the other. "No finding" is `14 p 0 0 1 1`, with p the probability that the image is normal, NEXT TO its
boxes.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vbd import storage
from vbd.boxes import as_boxes, clip, has_area
from vbd.errors import InputError
from vbd.labels import NO_FINDING, NO_FINDING_BOX
from vbd.records import Detections

HEADER = "image_id,PredictionString"
# Confidences must be above 0: what is smaller is written as this.
MIN_CONFIDENCE = 1e-6
_NO_BOX = "an image without findings needs `14 1 0 0 1 1`"


@dataclass(frozen=True)
class Defect:
    """Something in a submission that is wrong, or costs points."""

    line: int  # from 1; 0 when it concerns the whole file
    image_id: str  # empty when it concerns the line or the file
    problem: str
    mend: str


@dataclass(frozen=True)
class _Line:
    """One parsed row: `values` (n, 6), or None with the reason."""

    number: int
    image_id: str
    values: NDArray[np.float64] | None
    problem: str = ""
    mend: str = ""


def write_submission(
    detections: Sequence[Detections],
    path: str,
    *,
    image_ids: Sequence[str],
    original_hw: Mapping[str, tuple[int, int]] | None = None,
    max_boxes: int = 300,
) -> None:
    """Writes every image of `image_ids` once, in that order, with at most `max_boxes` of its best boxes.

    Boxes are cut at the image's border (at 0 alone without `original_hw`), empty ones and scores of 0 are left out. An
    image without boxes and without a probability gets `14 1 0 0 1 1`. The text is parsed again and compared before
    it appears under its name. Raises InputError for an unknown image, an image that comes twice and a score above 1.
    """
    by_id = {found.image_id: found for found in detections}
    if len(by_id) < len(detections):
        raise InputError(f"{path}: the detections hold an image twice; every image must come once")
    if len(set(image_ids)) < len(image_ids):
        raise InputError(f"{path}: the list of images holds an id twice; every image must come once")
    unknown = sorted(set(by_id) - set(image_ids))
    if unknown:
        raise InputError(f"{path}: detections of {unknown[0]!r}, which is not among the images to be submitted")
    rows = [
        _writable(by_id.get(image_id, Detections(image_id)), (original_hw or {}).get(image_id), max_boxes, path)
        for image_id in image_ids
    ]
    text = "\n".join([HEADER, *(f"{row.image_id},{_prediction_string(row)}" for row in rows)]) + "\n"
    for written, wanted in zip(_parse_all(text, path), rows, strict=True):
        if not _is_same(written, wanted):
            raise AssertionError(f"{path}: image {wanted.image_id} does not read back as it was written")
    storage.write_bytes(path, text.encode())


def read_submission(path: str) -> list[Detections]:
    """Detections of a submission in its order; raises InputError with the line of the first row that cannot be read."""
    return _parse_all(_text(path), path)


def check_submission(
    path: str, *, image_ids: Sequence[str], original_hw: Mapping[str, tuple[int, int]] | None = None
) -> list[Defect]:
    """Everything wrong with a submission, by line. `image_ids` are those it must hold; `original_hw` their sizes.

    Raises InputError only when the file cannot be read as text.
    """
    lines = _text(path).splitlines()
    defects = _header_defects(lines)
    wanted, first_line = set(image_ids), dict[str, int]()
    whole_image = False
    for row in _rows(lines):
        if row.image_id in first_line:
            problem = f"the image stands on line {first_line[row.image_id]} already"
            defects.append(Defect(row.number, row.image_id, problem, "put all its boxes into one row"))
        first_line.setdefault(row.image_id, row.number)
        if row.image_id not in wanted:
            defects.append(Defect(row.number, row.image_id, "not an image of this test set", "remove the row"))
        if row.values is None:
            defects.append(Defect(row.number, row.image_id, row.problem, row.mend))
            continue
        whole_image |= bool((row.values[:, 0] == NO_FINDING).any())
        defects += _value_defects(row, (original_hw or {}).get(row.image_id))
    for image_id in image_ids:
        if image_id not in first_line:
            defects.append(Defect(0, image_id, "the image has no row", f"add one; {_NO_BOX}"))
    if first_line and not whole_image:
        mend = "add `14 p 0 0 1 1` with p = P(normal) to every row; the class is a fifteenth of the score"
        defects.append(Defect(0, "", 'class 14 ("No finding") is nowhere predicted', mend))
    return sorted(defects, key=lambda defect: defect.line)


def _writable(found: Detections, hw: tuple[int, int] | None, max_boxes: int, path: str) -> Detections:
    """What of an image's detections goes into the file: boxes cut and capped, probability in (0, 1]."""
    if not np.isfinite(found.scores).all() or (len(found.scores) and found.scores.max() > 1):
        raise InputError(f"{path}: image {found.image_id!r} has the score {found.scores.max()}; scores must be in 0..1")
    boxes = clip(found.boxes, hw or (math.inf, math.inf))
    rows = np.flatnonzero(has_area(boxes) & (found.scores > 0))
    rows = rows[np.argsort(-found.scores[rows], kind="stable")][:max_boxes]
    p = found.no_finding
    if p is None and not len(rows):
        p = 1.0
    if p is not None and not 0 <= p <= 1:
        raise InputError(f"{path}: image {found.image_id!r} has P(normal) = {p}; it must be in 0..1")
    # Both confidences are ranked as float32: nothing is gained by more digits.
    p = None if p is None else float(np.float32(max(p, MIN_CONFIDENCE)))
    return dataclasses.replace(
        found, boxes=boxes[rows], scores=found.scores[rows], labels=found.labels[rows], no_finding=p
    )


def _prediction_string(found: Detections) -> str:
    numbers = np.concatenate([found.scores[:, None], found.boxes], axis=1)
    parts = [
        f"{label} {' '.join(map(shortest, row))}" for label, row in zip(found.labels.tolist(), numbers, strict=True)
    ]
    if found.no_finding is not None:
        parts.append(f"{NO_FINDING} {shortest(np.float32(found.no_finding))} 0 0 1 1")
    return " ".join(parts)


def shortest(value: np.float32) -> str:
    """The shortest text that reads back as exactly this float32: 3.0 -> `3`, 0.1 -> `0.1`."""
    return str(value).removesuffix(".0")


def _is_same(first: Detections, second: Detections) -> bool:
    return (
        first.image_id == second.image_id
        and first.no_finding == second.no_finding
        and np.array_equal(first.boxes, second.boxes)
        and np.array_equal(first.scores, second.scores)
        and np.array_equal(first.labels, second.labels)
    )


def _text(path: str) -> str:
    try:
        return storage.read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{path}: not a text file; a submission is a csv with the header {HEADER}") from None


def _parse_all(text: str, path: str) -> list[Detections]:
    lines = text.splitlines()
    for defect in _header_defects(lines):
        raise InputError(f"{path}:1: {defect.problem}; {defect.mend}")
    found: dict[str, Detections] = {}
    for row in _rows(lines):
        where = f"{path}:{row.number}: image {row.image_id!r}"
        if row.values is None:
            raise InputError(f"{where}: {row.problem}; {row.mend}")
        if row.image_id in found:
            raise InputError(f"{where}: the image comes twice; put all its boxes into one row")
        found[row.image_id] = _detections(row, where)
    return list(found.values())


def _detections(row: _Line, where: str) -> Detections:
    assert row.values is not None
    labels, scores = row.values[:, 0], row.values[:, 1]
    for wrong, problem in _class_and_score_problems(row.values):
        if wrong.any():
            raise InputError(f"{where}: {problem} in prediction {int(wrong.argmax()) + 1}")
    whole = labels == NO_FINDING
    return Detections(
        image_id=row.image_id,
        boxes=as_boxes(row.values[~whole, 2:]),
        scores=scores[~whole].astype(np.float32),
        labels=labels[~whole].astype(np.int64),
        no_finding=float(np.float32(scores[whole].max())) if whole.any() else None,
    )


def _header_defects(lines: Sequence[str]) -> list[Defect]:
    header = lines[0].strip() if lines else ""
    if header.replace('"', "") == HEADER:
        return []
    problem = f"the header is `{header[:80]}`" if lines else "the file is empty"
    return [Defect(1, "", problem, f"the first line must be `{HEADER}`")]


def _rows(lines: Sequence[str]) -> Iterator[_Line]:
    """The rows below the header; neither ids nor prediction strings hold commas, and blank lines are passed over."""
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        image_id, comma, text = (part.strip().strip('"') for part in line.partition(","))
        values, problem, mend = _values(text) if comma else (None, "no comma", f"write the row as {HEADER}")
        yield _Line(number, image_id, values, problem, mend)


def _values(text: str) -> tuple[NDArray[np.float64] | None, str, str]:
    """A prediction string as (n, 6) numbers, or None, what is wrong and how to mend it."""
    tokens = text.split()
    if not tokens:
        return None, "the prediction string is empty", _NO_BOX
    try:
        numbers = np.array(list(map(float, tokens)))
    except ValueError:
        numbers = np.array([_number(token) for token in tokens])
    if not np.isfinite(numbers).all():
        place = int((~np.isfinite(numbers)).argmax())
        return None, f"{tokens[place]!r} (value {place + 1}) is not a number", "write plain decimal numbers"
    if len(tokens) % 6:
        mend = "every prediction is `class confidence x_min y_min x_max y_max`"
        return None, f"the prediction string has {len(tokens)} values, not a multiple of six", mend
    return numbers.reshape(-1, 6), "", ""


def _number(token: str) -> float:
    try:
        return float(token)
    except ValueError:
        return math.nan


def _class_and_score_problems(values: NDArray[np.float64]) -> list[tuple[NDArray[np.bool_], str]]:
    """Which predictions (n, 6) have no class 0..14, and which no confidence in (0, 1]."""
    labels, scores = values[:, 0], values[:, 1]
    is_class = (labels == np.floor(labels)) & (labels >= 0) & (labels <= NO_FINDING)
    return [
        (~is_class, "the class is not one of 0..14"),
        (~((scores > 0) & (scores <= 1)), "the score is not in (0, 1]"),
    ]


def _value_defects(row: _Line, hw: tuple[int, int] | None) -> list[Defect]:
    """Defects of a row's predictions; each kind once, with its first place and their number."""
    assert row.values is not None
    boxes, whole = row.values[:, 2:], row.values[:, 0] == NO_FINDING
    sides = boxes[:, 2:] - boxes[:, :2]
    height, width = hw or (math.inf, math.inf)
    outside = (boxes[:, :2] < 0).any(1) | (boxes[:, 2] > width) | (boxes[:, 3] > height)
    (bad_class, class_problem), (bad_score, score_problem) = _class_and_score_problems(row.values)
    size = f"the image of {width} x {height} pixels" if hw else "the image"
    degenerate = ~whole & (sides <= 0).any(1)
    kinds = (
        (bad_class, class_problem, "classes are 0..13, and 14 for an image without findings"),
        (bad_score, score_problem, "confidences are above 0 and at most 1"),
        (degenerate, "the box has x_min >= x_max or y_min >= y_max", "remove it, or put its corners in order"),
        (~whole & ~degenerate & (sides <= 1).all(1), "the box is one pixel", "only class 14 has the box 0 0 1 1"),
        (
            ~whole & outside,
            f"the box leaves {size}",
            "boxes are in pixels of the ORIGINAL image; cut them at its border",
        ),
        (whole & (boxes != NO_FINDING_BOX).any(1), "the box of class 14 is not 0 0 1 1", "write `14 p 0 0 1 1`"),
        (whole & (np.cumsum(whole) > 1), "class 14 comes more than once", "write `14 p 0 0 1 1` once per image"),
    )
    defects = []
    for wrong, problem, mend in kinds:
        if wrong.any():
            place = f"prediction {int(wrong.argmax()) + 1}" + (
                f" and {wrong.sum() - 1} more" if wrong.sum() > 1 else ""
            )
            defects.append(Defect(row.number, row.image_id, f"{place}: {problem}", mend))
    return defects
