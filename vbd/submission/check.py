"""A submission file examined for what would cost points: every kind of defect with its lines and how to mend it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vbd.labels import NO_FINDING, NO_FINDING_BOX
from vbd.submission.file import HEADER, NO_BOX, Line, class_and_score_problems, header_problem, parse_lines, read_text

# What a mistaken id often ends in.
_SUFFIXES = (".dicom", ".dcm", ".png", ".jpg", ".jpeg")
_MENDS = {
    "unknown_class": "classes are 0..13, and 14 for an image without findings",
    "score_range": "confidences are above 0 and at most 1",
    "corners": "remove it, or put its corners in order",
    "one_pixel": "only class 14 has the box 0 0 1 1",
    "outside_image": "boxes are in pixels of the ORIGINAL image; cut them at its border",
    "whole_image_box": "write `14 p 0 0 1 1`",
    "whole_image_twice": "write `14 p 0 0 1 1` once per image",
}


@dataclass(frozen=True)
class Defect:
    """Something in a submission that is wrong, or costs points."""

    kind: str  # one of KINDS of reports/doctor
    line: int  # from 1; 0 when it concerns the whole file
    image_id: str  # empty when it concerns the line or the file
    problem: str
    mend: str


@dataclass(frozen=True)
class Sheet:
    """A submission as it stands: its rows, and the predictions of those that can be read, one after the other."""

    lines: tuple[Line, ...]
    header: str  # what is wrong with it
    values: NDArray[np.float64]  # (n, 6) class, confidence, box
    line_of: NDArray[np.int64]  # (n,) index into `lines`, ascending

    @property
    def boxes(self) -> NDArray[np.float64]:
        """The boxes in the precision that they are read with: (n, 4)."""
        return _as_read(self.values[:, 2:])

    @property
    def scores(self) -> NDArray[np.float64]:
        """The confidences in the precision that they are read with: (n,)."""
        return _as_read(self.values[:, 1])

    @property
    def is_whole(self) -> NDArray[np.bool_]:
        """Which predictions are of class 14: (n,)."""
        return self.values[:, 0] == NO_FINDING

    @property
    def is_finding(self) -> NDArray[np.bool_]:
        """Which predictions are of classes 0..13: (n,)."""
        labels = self.values[:, 0]
        return (labels >= 0) & (labels < NO_FINDING) & (labels == np.floor(labels))


def _as_read(values: NDArray[np.float64]) -> NDArray[np.float64]:
    # What is beyond float32 is no pixel and no confidence, but finite: the order of what is not beyond it stays.
    largest = np.finfo(np.float32).max
    return np.clip(values, -largest, largest).astype(np.float32).astype(np.float64)


def read_sheet(path: str, image_ids: Iterable[str] = ()) -> Sheet:
    """A submission with all its faults; raises InputError only when the file cannot be read as text.

    A first line that is a row of one of `image_ids` is taken for that: the header is missing. Another separator than the
    comma is a fault of the header alone.
    """
    lines = read_text(path).splitlines()
    problem = header_problem(lines)
    if problem and lines and "," not in lines[0]:
        separator = next((each for each in ";\t" if each in lines[0]), ",")
        lines = [line.replace(separator, ",", 1) for line in lines]
    is_row = bool(problem and lines) and lines[0].partition(",")[0].strip(' "') in set(image_ids)
    return sheet_of(parse_lines(lines, first=1 if is_row else 2), problem)


def sheet_of(lines: Sequence[Line], header: str = "") -> Sheet:
    """Rows with the predictions of those that can be read."""
    counts = [0 if line.kind else len(line.values) for line in lines]
    values = [np.zeros((0, 6)), *(line.values for line in lines if not line.kind)]
    return Sheet(tuple(lines), header, np.concatenate(values), np.repeat(np.arange(len(lines)), counts))


def with_values(sheet: Sheet, values: NDArray[np.float64], kept: NDArray[np.bool_] | None = None) -> Sheet:
    """The same rows with other predictions, or with some of them only."""
    kept = np.ones(len(values), np.bool_) if kept is None else kept
    return replace(sheet, values=values[kept], line_of=sheet.line_of[kept])


def check_submission(
    path: str, *, image_ids: Sequence[str], original_hw: Mapping[str, tuple[int, int]] | None = None
) -> list[Defect]:
    """Everything wrong with a submission, by line. `image_ids` are those it must hold; `original_hw` their sizes.

    Raises InputError only when the file cannot be read as text.
    """
    return check_sheet(read_sheet(path, image_ids), image_ids=image_ids, original_hw=original_hw or {})


def check_sheet(sheet: Sheet, *, image_ids: Sequence[str], original_hw: Mapping[str, tuple[int, int]]) -> list[Defect]:
    """`check_submission` of a file that has been read."""
    defects = [Defect("header", 1, "", sheet.header, f"the first line must be `{HEADER}`")] if sheet.header else []
    defects += _row_defects(sheet, image_ids)
    defects += _prediction_defects(sheet, original_hw)
    if sheet.lines and not sheet.is_whole.any():
        mend = "add `14 p 0 0 1 1` with p = P(normal) to every row; the class is a fifteenth of the score"
        defects.append(Defect("no_whole_image", 0, "", 'class 14 ("No finding") is nowhere predicted', mend))
    return sorted(defects, key=lambda defect: defect.line)


def counts_from_one(sheet: Sheet) -> bool:
    """Whether the classes are numbered 1 to 15, as COCO's categories are: 15 is what stands for the whole image."""
    labels = sheet.values[:, 0]
    is_pixel = (sheet.boxes == NO_FINDING_BOX).all(1)
    return bool(
        len(labels) and labels.min() >= 1 and labels.max() == NO_FINDING + 1 and is_pixel[labels > NO_FINDING].all()
    ) and not bool(is_pixel[sheet.is_whole].any())


def known_id(image_id: str, wanted: Iterable[str]) -> str:
    """The image that an unknown id means: without the ending of a file's name; empty when it means none."""
    bare = next((image_id.removesuffix(end) for end in _SUFFIXES if image_id.endswith(end)), image_id)
    return bare if bare != image_id and bare in wanted else ""


def _row_defects(sheet: Sheet, image_ids: Sequence[str]) -> list[Defect]:
    """Rows of no image of this test set, second rows of an image, rows that cannot be read, and images without one."""
    wanted, first_line, defects = set(image_ids), dict[str, int](), []
    for row in sheet.lines:
        meant = row.image_id
        if row.image_id not in wanted:
            meant = known_id(row.image_id, wanted) or row.image_id
            problem = f"the id is that of image {meant} with an ending" if meant != row.image_id else ""
            mend = f"write {meant}" if problem else "remove the row"
            problem = problem or "not an image of this test set"
            defects.append(Defect("unknown_image", row.number, row.image_id, problem, mend))
        if meant in first_line:
            problem = f"the image stands on line {first_line[meant]} already"
            mend = "put all its boxes into one row"
            defects.append(Defect("duplicate_image", row.number, row.image_id, problem, mend))
        first_line.setdefault(meant, row.number)
        if row.kind:
            defects.append(Defect(row.kind, row.number, row.image_id, row.problem, row.mend))
    missing = [image_id for image_id in image_ids if image_id not in first_line]
    return defects + [
        Defect("missing_image", 0, name, "the image has no row", f"add one; {NO_BOX}") for name in missing
    ]


def faults(sheet: Sheet, original_hw: Mapping[str, tuple[int, int]]) -> dict[str, NDArray[np.bool_]]:
    """Which predictions have a fault, by its kind: (n,) each."""
    boxes, whole = sheet.boxes, sheet.is_whole
    sides = boxes[:, 2:] - boxes[:, :2]
    size = sizes_of(sheet, original_hw)[sheet.line_of]
    degenerate = ~whole & (sides <= 0).any(1)
    wrong = {kind: mask for kind, (mask, _) in class_and_score_problems(sheet.values).items()}
    return wrong | {
        "corners": degenerate,
        "one_pixel": ~whole & ~degenerate & (sides <= 1).all(1),
        "outside_image": ~whole & ((boxes[:, :2] < 0).any(1) | (boxes[:, 2:] > size[:, ::-1]).any(1)),
        "whole_image_box": whole & (boxes != NO_FINDING_BOX).any(1),
        "whole_image_twice": _is_repeated(whole, sheet.line_of),
    }


def sizes_of(sheet: Sheet, original_hw: Mapping[str, tuple[int, int]]) -> NDArray[np.float64]:
    """Height and width of each line's image: (lines, 2), infinite where they are not known."""
    sizes = [original_hw.get(line.image_id, (np.inf, np.inf)) for line in sheet.lines]
    return np.array(sizes, np.float64).reshape(-1, 2)


def _is_repeated(mask: NDArray[np.bool_], line_of: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of the masked predictions come after another one in their line: (n,) -> (n,)."""
    rows = np.flatnonzero(mask)
    repeated = np.zeros(len(mask), np.bool_)
    repeated[rows[1:][line_of[rows[1:]] == line_of[rows[:-1]]]] = True
    return repeated


def _prediction_defects(sheet: Sheet, original_hw: Mapping[str, tuple[int, int]]) -> list[Defect]:
    """Defects of the rows' predictions; each kind once in a row, with its first place and their number."""
    starts = np.searchsorted(sheet.line_of, np.arange(len(sheet.lines)))
    problems = {kind: problem for kind, (_, problem) in class_and_score_problems(sheet.values).items()} | {
        "corners": "the box has x_min >= x_max or y_min >= y_max",
        "one_pixel": "the box is one pixel",
        "whole_image_box": "the box of class 14 is not 0 0 1 1",
        "whole_image_twice": "class 14 comes more than once",
    }
    defects = []
    for kind, wrong in faults(sheet, original_hw).items():
        places = np.flatnonzero(wrong)
        rows, first, counts = np.unique(sheet.line_of[places], return_index=True, return_counts=True)
        for row, place, count in zip(rows.tolist(), places[first].tolist(), counts.tolist(), strict=True):
            line = sheet.lines[row]
            where = f"prediction {place - starts[row] + 1}" + (f" and {count - 1} more" if count > 1 else "")
            problem = problems.get(kind) or f"the box leaves {_in_words(original_hw.get(line.image_id))}"
            defects.append(Defect(kind, line.number, line.image_id, f"{where}: {problem}", _MENDS[kind]))
    return defects


def _in_words(hw: tuple[int, int] | None) -> str:
    return f"the image of {hw[1]} x {hw[0]} pixels" if hw else "the image"
