"""The competition's submission file: written and read back. `submission_check` examines it for what would cost points.

`image_id,PredictionString`; the string holds `class confidence x_min y_min x_max y_max` in pixels of the original
image, one after the other. "No finding" is `14 p 0 0 1 1`, with p the probability that the image is normal, NEXT TO its
boxes.
"""

import dataclasses
import math
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vbd import storage
from vbd.boxes import as_boxes, clip, has_area
from vbd.errors import InputError, StoreError
from vbd.labels import NO_FINDING, NO_FINDING_BOX
from vbd.records import Detections
from vbd.storage.outputs import SUBMISSION_HEADER

if TYPE_CHECKING:
    import pyarrow as pa

HEADER = SUBMISSION_HEADER
# Confidences must be above 0: what is smaller is written as this.
MIN_CONFIDENCE = 1e-6
# Python also reads `1_0` and the digits of other scripts, which whoever scores the file may not.
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
NO_BOX = "an image without findings needs `14 1 0 0 1 1`"


@dataclass(frozen=True)
class Line:
    """One parsed row of the file."""

    number: int  # from 1, the header
    image_id: str
    values: NDArray[np.float64]  # (n, 6) the whole predictions; NaN for what is no number
    kind: str = ""  # what keeps the row from being read: no_prediction, not_a_number or not_six
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

    Boxes are cut at the image's border (at 0 alone without `original_hw`); those of no more than a pixel and scores of 0
    are left out. An image without boxes and without a probability gets `14 1 0 0 1 1`. The file is read again and compared
    before it appears under its name. Raises InputError for an unknown image, an image that comes twice and a score
    outside 0..1, StoreError when the place does not keep what is written.
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
    strings = _prediction_strings(rows)
    text = "\n".join([HEADER, *(f"{row.image_id},{string}" for row, string in zip(rows, strings, strict=True))]) + "\n"
    _publish(text, rows, path)


def read_submission(path: str) -> list[Detections]:
    """Detections of a submission in its order; raises InputError with the line of the first row that cannot be read."""
    return _parse_all(read_text(path), path)


def read_text(path: str) -> str:
    """The text of a submission; raises InputError when it is none."""
    try:
        return storage.read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{path}: not a text file; a submission is a csv with the header {HEADER}") from None


def header_problem(lines: Sequence[str]) -> str:
    """What is wrong with the first line; empty when nothing is."""
    header = lines[0].strip() if lines else ""
    if header.replace('"', "") == HEADER:
        return ""
    return f"the header is `{header[:80]}`" if lines else "the file is empty"


def parse_lines(lines: Sequence[str], *, first: int = 2) -> list[Line]:
    """The rows from a line on; neither ids nor prediction strings hold commas, and blank lines are passed over."""
    rows = [
        (number, *line.partition(",")) for number, line in enumerate(lines[first - 1 :], start=first) if line.strip()
    ]
    texts = [text.strip().strip('"') for _, _, _, text in rows]
    numbers = _fast_numbers(texts) or [_numbers(text) for text in texts]
    return [
        _line(number, image_id.strip().strip('"'), text, found) if comma else _without_comma(number, image_id.strip())
        for (number, image_id, comma, _), text, found in zip(rows, texts, numbers, strict=True)
    ]


def class_and_score_problems(values: NDArray[np.float64]) -> dict[str, tuple[NDArray[np.bool_], str]]:
    """Which predictions (n, 6) have no class 0..14, and which no confidence in (0, 1]: mask and problem by kind."""
    labels, scores = values[:, 0], values[:, 1]
    is_class = (labels == np.floor(labels)) & (labels >= 0) & (labels <= NO_FINDING)
    return {
        "unknown_class": (~is_class, "the class is not one of 0..14"),
        "score_range": (~((scores > 0) & (scores <= 1)), "the score is not in (0, 1]"),
    }


# ------------------------------------------------------------------------------------------------------------ writing


def _writable(found: Detections, hw: tuple[int, int] | None, max_boxes: int, path: str) -> Detections:
    """What of an image's detections goes into the file: boxes cut and capped, probability in (0, 1]."""
    scores = found.scores
    if not np.isfinite(scores).all() or (len(scores) and not 0 <= scores.min() <= scores.max() <= 1):
        bad = scores[~((scores >= 0) & (scores <= 1))][0]
        raise InputError(f"{path}: image {found.image_id!r} has the score {bad}; scores must be in 0..1")
    boxes = clip(found.boxes, hw or (math.inf, math.inf))
    # The box of class 14 is one pixel, and no finding is as small.
    large = (boxes[:, 2:].astype(np.float64) - boxes[:, :2] > 1).any(1)
    rows = np.flatnonzero(has_area(boxes) & large & (scores > 0))
    rows = rows[np.argsort(-scores[rows], kind="stable")][:max_boxes]
    p = found.no_finding
    if p is None and not len(rows):
        p = 1.0
    if p is not None and not 0 <= p <= 1:
        raise InputError(f"{path}: image {found.image_id!r} has P(normal) = {p}; it must be in 0..1")
    # Both confidences are ranked as float32: nothing is gained by more digits.
    p = None if p is None else float(np.float32(max(p, MIN_CONFIDENCE)))
    return dataclasses.replace(found, boxes=boxes[rows], scores=scores[rows], labels=found.labels[rows], no_finding=p)


def _prediction_strings(rows: Sequence[Detections]) -> list[str]:
    """The prediction string of each image."""
    import pyarrow as pa  # 0.1 s: kept out of --help
    import pyarrow.compute as pc

    numbers = [_numbers_of(row) for row in rows]
    ends = np.cumsum([0, *map(len, numbers)], dtype=np.int32)
    texts = pa.ListArray.from_arrays(ends, shortest(np.concatenate([np.zeros(0, np.float32), *numbers])))
    return pc.binary_join(texts, " ").to_pylist()


def _numbers_of(found: Detections) -> NDArray[np.float32]:
    numbers = np.concatenate([found.labels[:, None], found.scores[:, None], found.boxes], axis=1, dtype=np.float32)
    if found.no_finding is None:
        return numbers.ravel()
    return np.append(numbers, np.array([NO_FINDING, found.no_finding, *NO_FINDING_BOX], np.float32))


def shortest(numbers: NDArray[np.float32]) -> "pa.Array":
    """The fewest digits that read back as exactly these float32: 3.0 -> `3`, 0.1 -> `0.1`, 0.00001 -> `1e-5`; (n,) -> (n,)."""
    import pyarrow as pa
    import pyarrow.compute as pc

    texts = pc.cast(pa.array(numbers, pa.float32()), pa.string())
    # Arrow writes zeros where an exponent is shorter.
    small = (numbers != 0) & (np.abs(numbers) <= 1e-4)
    shorter = pa.array([str(number).replace("e-0", "e-") for number in numbers[small]], pa.string())
    return pc.replace_with_mask(texts, small, shorter)


def _publish(text: str, rows: Sequence[Detections], path: str) -> None:
    """Writes under another name, reads back, compares, and only then gives the file its name."""
    data, temporary = text.encode(), f"{path}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        storage.write_bytes(temporary, data)
        stored = storage.read_bytes(temporary)
        if stored != data:
            raise StoreError(f"{path}: does not read back as it was written; choose another place")
        for written, wanted in zip(_parse_all(stored.decode(), path), rows, strict=True):
            if not _is_same(written, wanted):
                raise AssertionError(f"{path}: image {wanted.image_id} does not read back as it was written")
        storage.move_file(temporary, path)
    except BaseException:
        storage.delete_file(temporary)
        raise


def _is_same(first: Detections, second: Detections) -> bool:
    return (
        first.image_id == second.image_id
        and first.no_finding == second.no_finding
        and np.array_equal(first.boxes, second.boxes)
        and np.array_equal(first.scores, second.scores)
        and np.array_equal(first.labels, second.labels)
    )


# ------------------------------------------------------------------------------------------------------------ reading


def _parse_all(text: str, path: str) -> list[Detections]:
    lines = text.splitlines()
    problem = header_problem(lines)
    if problem:
        raise InputError(f"{path}:1: {problem}; the first line must be `{HEADER}`")
    found: dict[str, Detections] = {}
    for row in parse_lines(lines):
        where = f"{path}:{row.number}: image {row.image_id!r}"
        if row.kind:
            raise InputError(f"{where}: {row.problem}; {row.mend}")
        if row.image_id in found:
            raise InputError(f"{where}: the image comes twice; put all its boxes into one row")
        found[row.image_id] = _detections(row, where)
    return list(found.values())


def _detections(row: Line, where: str) -> Detections:
    labels, scores = row.values[:, 0], row.values[:, 1]
    for wrong, problem in class_and_score_problems(row.values).values():
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


def _fast_numbers(texts: Sequence[str]) -> list[NDArray[np.float64]] | None:
    """The numbers of each text at once; None when one of them holds anything else, which arrow tells of none in particular."""
    import pyarrow as pa  # 0.1 s: kept out of --help
    import pyarrow.compute as pc

    if not texts:
        return []
    tokens = pc.ascii_split_whitespace(pa.array(texts, pa.string()))
    try:
        numbers = pc.cast(tokens.flatten(), pa.float64()).to_numpy()
    except pa.ArrowInvalid:
        return None
    return np.split(numbers, tokens.offsets.to_numpy()[1:-1])


def _numbers(text: str) -> NDArray[np.float64]:
    """The numbers of a text, NaN for what is none."""
    return np.array([_number(token) for token in text.split()], np.float64)


def _number(token: str) -> float:
    return float(token) if _NUMBER.fullmatch(token) else math.nan


def _line(number: int, image_id: str, text: str, numbers: NDArray[np.float64]) -> Line:
    """A row with what keeps it from being read, if anything does."""
    values = numbers[: len(numbers) // 6 * 6].reshape(-1, 6)
    if not len(numbers):
        return Line(number, image_id, values, "no_prediction", "the prediction string is empty", NO_BOX)
    finite = np.isfinite(numbers)
    if not finite.all():
        place = int((~finite).argmax())
        problem = f"{text.split()[place]!r} (value {place + 1}) is not a number"
        return Line(number, image_id, values, "not_a_number", problem, "write plain decimal numbers")
    if len(numbers) % 6:
        problem = f"the prediction string has {len(numbers)} values, not a multiple of six"
        mend = "every prediction is `class confidence x_min y_min x_max y_max`"
        return Line(number, image_id, values, "not_six", problem, mend)
    return Line(number, image_id, values)


def _without_comma(number: int, image_id: str) -> Line:
    return Line(number, image_id, np.zeros((0, 6)), "no_prediction", "no comma", f"write the row as {HEADER}")
