"""A submission examined: every kind of defect with its rows, how to mend it, and what it costs where the truth is known."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vbd import storage
from vbd.config import ResizeMode
from vbd.data.parts import in_words, truths_of
from vbd.data.prepared import Part, PreparedDataset, open_dataset
from vbd.errors import InputError
from vbd.records import Truth
from vbd.submission.asked import asked_of
from vbd.submission.check import Defect, Sheet, check_sheet, counts_from_one, known_id, read_sheet
from vbd.submission.mend import Case, mend, score_sheet
from vbd.submission.signs import (
    REVERSED_MEND,
    find_equal_scores,
    find_resized,
    find_reversed_whole,
    ranks,
    resized_defects,
    whole_confidence,
    without_explained,
)

__all__ = ["KINDS", "Examination", "Finding", "as_json", "examine"]

SCHEMA = 1
# The kinds of defects, in the order in which they are told and, all together, mended.
KINDS = {
    "header": "wrong header",
    "unknown_image": "rows of unknown images",
    "missing_image": "images without a row",
    "duplicate_image": "images with several rows",
    "no_prediction": "rows without a prediction",
    "not_a_number": "values that are no numbers",
    "not_six": "rows whose values are not a multiple of six",
    "unknown_class": "unknown classes",
    "score_range": "scores outside (0, 1]",
    "corners": "boxes with exchanged corners or without area",
    "one_pixel": "boxes of one pixel",
    "outside_image": "boxes outside their image",
    "resized": "boxes in pixels of resized images",
    "whole_image_box": "class 14 with another box",
    "whole_image_twice": "class 14 more than once in a row",
    "no_whole_image": "no class 14",
    "whole_image_reversed": "class 14 with p of the wrong sense",
    "whole_image_equal": "class 14 with one p for all",
    "scores_equal": "equal scores",
}
_SHOWN, _ID_SHOWN = 3, 80  # first places of a kind; characters of an id, which may be a whole row
_NORMAL_Z = 1.645  # one-sided 95 %


@dataclass(frozen=True)
class Finding:
    """All defects of a kind."""

    kind: str
    defects: tuple[Defect, ...]
    score: float | None  # map_40 with this kind alone mended; None where that cannot be told
    how: str  # what mended it there, or why nothing can


@dataclass(frozen=True)
class Examination:
    """What was found out about a submission."""

    path: str
    dataset: PreparedDataset
    where: str  # the part of the dataset, in words
    rows: int
    predictions: int
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]  # what is no defect, but worth knowing
    score: float | None  # map_40 of what can be read of the file as it is; None where the truth is not known
    score_mended: float | None  # with all kinds mended that can be
    why_not: str = ""  # why there are no scores

    @property
    def text(self) -> str:
        """A report for people."""
        return "\n".join(_text(self))


def examine(path: str, data: str, *, part: Part | None = None, output_json: str | None = None) -> Examination:
    """Examines a submission for a part of a prepared dataset, by default the one that its images are in.

    Raises InputError when the file is no text or the dataset cannot be read.
    """
    dataset = open_dataset(data)
    asked = asked_of(path, dataset, part)
    image_ids, sizes = asked.image_ids, dict(asked.sizes)
    sheet = read_sheet(path, image_ids)
    sizes |= {line.image_id: sizes[known] for line in sheet.lines if (known := known_id(line.image_id, sizes))}
    resized = find_resized(sheet, sizes, prepared_side=dataset.options.image_size)
    case = Case(image_ids, sizes, resized, dataset.options.resize)
    truths, why_not = _truths(dataset, asked.parts)
    defects = _defects(sheet, case, truths)
    findings, score, mended = _findings(sheet, case, defects, truths)
    done = Examination(
        path=path,
        dataset=dataset,
        where=in_words(asked.parts),
        rows=len(sheet.lines),
        predictions=len(sheet.values),
        findings=findings,
        notes=_notes(sheet),
        score=score,
        score_mended=mended,
        why_not=why_not,
    )
    if output_json:
        storage.write_json(output_json, as_json(done))
    return done


def _truths(dataset: PreparedDataset, parts: Sequence[Part]) -> tuple[list[Truth], str]:
    try:
        return truths_of(parts, dataset), ""
    except InputError as error:
        return [], str(error)


def _defects(sheet: Sheet, case: Case, truths: Sequence[Truth]) -> list[Defect]:
    from_one = []
    if counts_from_one(sheet):
        faulty = check_sheet(sheet, image_ids=case.image_ids, original_hw=case.original_hw)
        text = "classes seem to count from 1: take 1 from every class"
        from_one = [replace(defect, mend=text) for defect in faulty if defect.kind == "unknown_class"]
        sheet = mend("unknown_class", sheet, case).sheet or sheet
    defects = from_one + check_sheet(sheet, image_ids=case.image_ids, original_hw=case.original_hw)
    defects = without_explained(defects, case.resized)
    defects += resized_defects(sheet, case.resized, case.original_hw)
    defects += find_equal_scores(sheet)
    return defects + (_reversed_by_truth(sheet, truths) if truths else find_reversed_whole(sheet))


def _reversed_by_truth(sheet: Sheet, truths: Sequence[Truth]) -> list[Defect]:
    """Class 14 that is higher on abnormal images than on normal ones, by more than chance."""
    normal_of = {truth.image_id: not len(truth.labels) for truth in truths}
    rows, p = whole_confidence(sheet)
    known = [
        (normal_of[sheet.lines[row].image_id], p[i])
        for i, row in enumerate(rows)
        if sheet.lines[row].image_id in normal_of
    ]
    normal, values = np.array([each for each, _ in known], np.bool_), np.array([value for _, value in known])
    n, m = int(normal.sum()), int((~normal).sum())
    if not (n and m):
        return []
    auc = (ranks(values)[normal].sum() - n * (n - 1) / 2) / (n * m)
    if (auc - 0.5) / np.sqrt((n + m + 1) / (12 * n * m)) > -_NORMAL_Z:
        return []
    problem = f"class 14 is higher on abnormal images than on normal ones (area under the ROC curve {auc:.2f})"
    return [Defect("whole_image_reversed", 0, "", problem, REVERSED_MEND)]


def _findings(
    sheet: Sheet, case: Case, defects: Sequence[Defect], truths: Sequence[Truth]
) -> tuple[tuple[Finding, ...], float | None, float | None]:
    """The defects by kind, the score of the file as it is, and with all mended."""
    groups = {kind: tuple(each for each in defects if each.kind == kind) for kind in KINDS}
    groups = {kind: group for kind, group in groups.items() if group}
    if "resized" in groups and truths:
        case = _with_best_resize(sheet, case, truths)
    findings, whole = [], sheet
    for kind, group in groups.items():
        mended = mend(kind, sheet, case)
        score = score_sheet(mended.sheet, truths).map_40 if mended.sheet and truths else None
        findings.append(Finding(kind, group, score, mended.how))
        whole = mend(kind, whole, case).sheet or whole
    if not truths:
        return tuple(findings), None, None
    return tuple(findings), score_sheet(sheet, truths).map_40, score_sheet(whole, truths).map_40


def _with_best_resize(sheet: Sheet, case: Case, truths: Sequence[Truth]) -> Case:
    """How the images were resized, by what scores best."""
    modes: tuple[ResizeMode, ...] = ("stretch", "letterbox")
    cases = sorted((replace(case, resize=mode) for mode in modes), key=lambda each: each.resize != case.resize)
    return max(cases, key=lambda each: score_sheet(mend("resized", sheet, each).sheet or sheet, truths).map_40)


def _notes(sheet: Sheet) -> tuple[str, ...]:
    """What is allowed, and worth knowing."""
    with_whole, with_findings = set(sheet.line_of[sheet.is_whole]), set(sheet.line_of[sheet.is_finding])
    if with_whole and not with_findings:
        return ("it holds no findings: class 14, a fifteenth of the score, is all that it can score in",)
    if with_whole and not with_whole & with_findings:
        return (
            "class 14 stands in rows without boxes alone: `14 p 0 0 1 1` beside the boxes, p = P(normal), scores more",
        )
    return ()


# ---------------------------------------------------------------------------------------------------------------- told


def _text(done: Examination) -> list[str]:
    note = " (synthetic data: says nothing about real X-rays)" if done.dataset.synthetic else ""
    lines = [f"{storage.shown(done.path)} for the {done.where} of {storage.shown(done.dataset.location)}{note}"]
    lines.append(f"{done.rows:,} rows, {done.predictions:,} predictions")
    lines.append(f"map_40 {_number(done.score)} as it is" if not done.why_not else f"not scored: {done.why_not}")
    lines += [f"note: {each}" for each in done.notes]
    for finding in done.findings:
        lines += ["", *_finding_lines(finding, done)]
    if not done.findings:
        return [*lines, "no defects"]
    places = sum(len(finding.defects) for finding in done.findings)
    kinds = len(done.findings)
    total = f"{kinds} kind{'s' if kinds > 1 else ''} of defects in {places:,} place{'s' if places > 1 else ''}"
    if done.score_mended is not None and kinds > 1:
        total += f"; map_40 {_number(done.score_mended)} with all mended that can be"
    return [*lines, "", total]


def _finding_lines(finding: Finding, done: Examination) -> list[str]:
    lines = [f"{KINDS[finding.kind]}: {len(finding.defects):,}"]
    for defect in finding.defects[:_SHOWN]:
        place = [f"line {defect.line}"] if defect.line else []
        image = [f"image {defect.image_id[:_ID_SHOWN]}"] if defect.image_id else []
        lines.append(f"  {', '.join([*place, *image]) or 'file'}: {defect.problem}")
    rest = len(finding.defects) - _SHOWN
    lines += [f"  and {rest:,} more"] if rest > 0 else []
    mends = list(dict.fromkeys(defect.mend for defect in finding.defects[:_SHOWN]))
    lines.append(f"  mend: {' / '.join(mends)}")
    if finding.score is not None and done.score is not None:
        lines.append(
            f"  map_40 {_number(finding.score)} ({finding.score - done.score:+.4f}) when mended: {finding.how}"
        )
    elif done.score is not None:
        lines.append(f"  what it costs cannot be told: {finding.how}")
    return lines


def _number(value: float | None) -> str:
    return "-" if value is None or np.isnan(value) else f"{value:.4f}"


def as_json(done: Examination) -> dict[str, Any]:
    """All that was found; docs/evaluation.md says what each key means."""
    return {
        "schema": SCHEMA,
        "submission": done.path,
        "dataset": done.dataset.fingerprint,
        "synthetic": done.dataset.synthetic,
        "part": done.where,
        "rows": done.rows,
        "predictions": done.predictions,
        "map_40": done.score,
        "map_40_mended": done.score_mended,
        "not_scored": done.why_not,
        "notes": list(done.notes),
        "defects": [_finding_json(finding, done.score) for finding in done.findings],
    }


def _finding_json(finding: Finding, score: float | None) -> dict[str, Any]:
    return {
        "kind": finding.kind,
        "title": KINDS[finding.kind],
        "count": len(finding.defects),
        "places": [
            {"line": each.line, "image_id": each.image_id, "problem": each.problem, "mend": each.mend}
            for each in finding.defects
        ],
        "map_40_mended": finding.score,
        "loss": None if finding.score is None or score is None else finding.score - score,
        "how": finding.how,
    }
