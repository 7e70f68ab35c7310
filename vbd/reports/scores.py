"""Predictions of any kind against a prepared dataset's truth, as a table for people and JSON for programs."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from vbd import storage
from vbd.boxes import as_boxes, xywh_to_xyxy
from vbd.data import prepared
from vbd.data.prepared import (
    TEST_FOLD,
    Part,
    PreparedDataset,
    image_sizes,
    open_dataset,
    read_rows,
    read_truths,
    sample_submission_ids,
    to_detections,
)
from vbd.errors import InputError
from vbd.evaluation.average_precision import Scores, evaluate
from vbd.evaluation.froc import FrocCurve, froc
from vbd.evaluation.intervals import bootstrap
from vbd.labels import NO_FINDING_NAME, NUM_FINDINGS
from vbd.records import Detections, Truth, detections_from_table
from vbd.submission import Defect, check_submission, read_submission

IOU_THRESHOLD = 0.4
_EXPLAINED = {
    "map_40": 'the competition\'s: 15 classes with "No finding", IoU > 0.4',
    "map_40_findings": "the 14 findings",
    "map_coco_101": "the 14 findings, COCO's 101 recall points",
}
_COLUMNS = ("image_id", "boxes", "scores", "labels", "no_finding")
_MAX_DEFECTS_SHOWN = 20
_LEVEL = 0.95
_SEED = 0  # of the bootstrap: equal files get equal intervals


@dataclass(frozen=True)
class ScoredPredictions:
    """What was found out about a file of predictions."""

    text: str  # a table for people
    scores: Scores | None  # None for a submission that cannot be scored: unreadable, or its truth is not known
    defects: tuple[str, ...]  # what is wrong with a submission.csv; empty for the other kinds


def parse_part(text: str | None) -> Part | None:
    """The part that a user names, as `prepared.parse_part`; None, for whichever holds the images, stays None."""
    return None if text is None else prepared.parse_part(text)


def score_predictions(
    predictions: str, data: str, *, part: Part | None = None, replicates: int = 1_000, output_json: str | None = None
) -> ScoredPredictions:
    """Scores detections (Parquet), a submission (csv) or COCO results (JSON) against the truth of a part of a dataset.

    Without a part it is the one that the predictions' images are in: the test part, or all folds that hold one of them.
    A submission is for the test part unless told otherwise, and is checked line by line. Raises InputError for a file
    that cannot be read and for images that the dataset does not hold.
    """
    dataset = open_dataset(data)
    if predictions.endswith(".csv"):
        report = _score_submission(predictions, dataset, "test" if part is None else part, replicates)
    else:
        detections = _read(predictions, dataset, part)
        chosen, where = _choose(predictions, dataset, [found.image_id for found in detections], part)
        report = _score(_Report(predictions, dataset, where), detections, _truths(dataset, chosen), replicates)
    if output_json:
        storage.write_json(output_json, _as_json(report))
    return ScoredPredictions(_as_text(report), report.scores, report.defects)


@dataclass(frozen=True)
class _Report:
    predictions: str
    dataset: PreparedDataset
    where: str  # the part, in words
    is_submission: bool = False
    defects: tuple[str, ...] = ()
    scores: Scores | None = None
    why_not: str = ""  # why there are no scores
    images: int = 0  # images with a row in the predictions
    left_out: int = 0  # images of the predictions outside the part
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)  # of each headline and class
    froc: FrocCurve | None = None  # all findings together


def _score(report: _Report, detections: Sequence[Detections], truths: Sequence[Truth], replicates: int) -> _Report:
    inside = {truth.image_id for truth in truths}
    mine = [found for found in detections if found.image_id in inside]
    if not mine:
        raise InputError(
            f"{report.predictions}: none of its images is in the {report.where} of {report.dataset.location}; "
            "choose another --part"
        )
    return replace(
        report,
        scores=evaluate(mine, truths, iou_threshold=IOU_THRESHOLD),
        images=len(mine),
        left_out=len(detections) - len(mine),
        intervals=_intervals(mine, truths, replicates),
        froc=froc(mine, truths, iou_threshold=IOU_THRESHOLD).pooled,
    )


def _intervals(
    detections: Sequence[Detections], truths: Sequence[Truth], replicates: int
) -> dict[str, tuple[float, float]]:
    """Bootstrap intervals over images, of the headlines and of each class; NaN for a class without truth."""
    if replicates == 0:
        return {}
    found = bootstrap(detections, truths, seed=_SEED, replicates=replicates, level=_LEVEL, iou_threshold=IOU_THRESHOLD)
    named = {"map_40": found.map_40, "map_40_findings": found.map_40_findings} | found.per_class
    return {name: (interval.low, interval.high) for name, interval in named.items()}


def _score_submission(location: str, dataset: PreparedDataset, part: Part, replicates: int) -> _Report:
    sizes = image_sizes(dataset, part)
    wanted = sample_submission_ids(dataset) if part == "test" else list(sizes)
    defects = check_submission(location, image_ids=wanted, original_hw=sizes)
    report = _Report(location, dataset, _in_words([part]), True, tuple(_defect_line(defect) for defect in defects))
    try:
        return _score(report, read_submission(location), read_truths(dataset, part), replicates)
    except InputError as error:
        # An unreadable row is among the defects already; a test part without its truth is what users of real data have.
        return replace(report, why_not=str(error))


def _defect_line(defect: Defect) -> str:
    place = [f"line {defect.line}"] if defect.line else []
    image = [f"image {defect.image_id}"] if defect.image_id else []
    return f"{', '.join([*place, *image]) or 'file'}: {defect.problem}; {defect.mend}"


# ------------------------------------------------------------------------------------------------------------- reading


def _read(location: str, dataset: PreparedDataset, part: Part | None) -> list[Detections]:
    if location.endswith(".json"):
        return _read_coco_results(location, dataset, part)
    if not location.endswith(".parquet"):  # the folder that jobs/predict.py writes
        location = storage.join(location, "detections.parquet")
    table = storage.read_table(location)
    missing = [name for name in _COLUMNS if name not in table.column_names]
    if missing:
        raise InputError(f"{location}: no column {missing[0]!r}; want {', '.join(_COLUMNS)}, as jobs/predict.py writes")
    return detections_from_table(table)


def _read_coco_results(location: str, dataset: PreparedDataset, part: Part | None) -> list[Detections]:
    """COCO results: boxes `xywh` in pixels of the prepared image, images by number (of the part's file) or by name."""
    entries = storage.read_json(location)
    if not isinstance(entries, list):
        raise InputError(f"{location}: want a list of COCO results (image_id, category_id, bbox, score)")
    names = _image_names(location, dataset, part) if any(isinstance(_id(e), int) for e in entries) else {}
    entries_of: dict[str, list[dict[str, Any]]] = {}
    for place, entry in enumerate(entries):
        name = names.get(_id(entry), _id(entry))
        if not isinstance(name, str):
            raise InputError(f"{location}: entry {place}: no image {name!r} in this part of {dataset.location}")
        entries_of.setdefault(name, []).append(_checked(entry, f"{location}: entry {place}"))
    sizes = image_sizes(dataset, "train") | image_sizes(dataset, "test")
    unknown = next((name for name in entries_of if name not in sizes), None)
    if unknown is not None:
        raise InputError(f"{location}: image {unknown!r} is not in {dataset.location}")
    return [
        _from_coco_results(name, entries_of.get(name, []), sizes[name], dataset)
        for name in names.values() or entries_of
    ]


def _id(entry: Any) -> Any:
    return entry.get("image_id") if isinstance(entry, dict) else None


def _image_names(location: str, dataset: PreparedDataset, part: Part | None) -> dict[Any, str]:
    """Names of the images by their numbers, which count anew in each file of annotations."""
    if part is None:
        raise InputError(
            f"{location}: gives images by number; name the file they count in with --part (test, train, 0..)"
        )
    name = {"train": "instances_all", "test": "image_info_test"}.get(str(part), f"instances_fold{part}")
    file = storage.join(dataset.location, "annotations", f"{name}.json")
    return {image["id"]: image["image_id"] for image in storage.read_json(file)["images"]}


def _checked(entry: dict[str, Any], where: str) -> dict[str, Any]:
    bbox, category = entry.get("bbox"), entry.get("category_id")
    if not (isinstance(bbox, list) and len(bbox) == 4 and all(isinstance(value, (int, float)) for value in bbox)):
        raise InputError(f"{where}: bbox is {bbox!r}; want [x, y, width, height]")
    if not (isinstance(category, int) and 1 <= category <= NUM_FINDINGS):
        raise InputError(f"{where}: category_id is {category!r}; want 1 to {NUM_FINDINGS}")
    if not isinstance(entry.get("score"), (int, float)):
        raise InputError(f"{where}: score is {entry.get('score')!r}; want a number")
    return entry


def _from_coco_results(
    image_id: str, entries: Sequence[dict[str, Any]], original_hw: tuple[int, int], dataset: PreparedDataset
) -> Detections:
    ordered = sorted(entries, key=lambda entry: -entry["score"])
    return to_detections(
        image_id,
        xywh_to_xyxy(as_boxes([entry["bbox"] for entry in ordered])),
        np.array([entry["score"] for entry in ordered], np.float32),
        np.array([entry["category_id"] - 1 for entry in ordered], np.int64),
        original_hw=original_hw,
        image_size=dataset.options.image_size,
        options=dataset.options,
    )


# ---------------------------------------------------------------------------------------------------------------- part


def _choose(
    predictions: str, dataset: PreparedDataset, ids: Iterable[str], part: Part | None
) -> tuple[tuple[Part, ...], str]:
    """The parts to score on, and their name in words."""
    table = read_rows(dataset, ["image_id", "fold"])
    fold_of = dict(zip(table["image_id"].to_pylist(), table["fold"].to_pylist(), strict=True))
    unknown = next((image_id for image_id in ids if image_id not in fold_of), None)
    if unknown is not None:
        raise InputError(
            f"{predictions}: image {unknown!r} is not in {dataset.location}; give the dataset it was made on"
        )
    if part is not None:
        return (part,), _in_words([part])
    folds = sorted({fold_of[image_id] for image_id in ids})
    if not folds:
        raise InputError(f"{predictions}: holds no image")
    if folds == [TEST_FOLD]:
        return ("test",), _in_words(["test"])
    if TEST_FOLD in folds:
        raise InputError(f"{predictions}: holds images of the test part and of training folds; choose one with --part")
    return tuple(folds), _in_words(folds)


def _in_words(parts: Sequence[Part]) -> str:
    if parts[0] in ("test", "train"):
        return f"{parts[0]} part"
    return f"fold{'s' if len(parts) > 1 else ''} {', '.join(map(str, parts))}"


def _truths(dataset: PreparedDataset, parts: Sequence[Part]) -> list[Truth]:
    truths = [truth for part in parts for truth in read_truths(dataset, part)]
    return sorted(truths, key=lambda truth: truth.image_id)


# -------------------------------------------------------------------------------------------------------------- output


def _as_json(report: _Report) -> dict[str, Any]:
    return {
        "predictions": report.predictions,
        "dataset": report.dataset.fingerprint,
        "synthetic": report.dataset.synthetic,
        "part": report.where,
        "iou_threshold": IOU_THRESHOLD,
        "defects": list(report.defects),
        "not_scored": report.why_not,
        "scores": asdict(report.scores) if report.scores else None,
        "intervals": report.intervals,
        "froc": asdict(report.froc) if report.froc else None,
    }


def _as_text(report: _Report) -> str:
    note = " (synthetic data: says nothing about real X-rays)" if report.dataset.synthetic else ""
    lines = [f"{report.predictions} against the {report.where} of {report.dataset.location}{note}"]
    if report.scores is None:
        lines.append(f"not scored: {report.why_not}")
    else:
        lines += [*_headlines(report, report.scores), "", *_class_table(report, report.scores), *_froc_lines(report)]
    return "\n".join([*lines, *_defect_lines(report)])


def _headlines(report: _Report, scores: Scores) -> list[str]:
    boxes = sum(scores.num_truths.values()) - scores.num_truths[NO_FINDING_NAME]
    left_out = f", {report.left_out} more outside this part left out" if report.left_out else ""
    lines = [f"{scores.num_images} images, {boxes} boxes to find; {report.images} images predicted{left_out}", ""]
    for name in _EXPLAINED:
        value = getattr(scores, name)
        lines.append(f"{name:<17} {_number(value)}{_interval(report, name, brackets=True)}  {_EXPLAINED[name]}")
    return lines


def _class_table(report: _Report, scores: Scores) -> list[str]:
    rows = [("class", "AP", *(["95 % interval"] if report.intervals else []), "to find", "predicted")]
    for name, value in scores.per_class.items():
        interval = [_interval(report, name)] if report.intervals else []
        rows.append((name, _number(value), *interval, str(scores.num_truths[name]), str(scores.num_detections[name])))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]


def _froc_lines(report: _Report) -> list[str]:
    if report.froc is None:
        return []
    points = zip(
        report.froc.false_positives_per_image, report.froc.sensitivities, report.froc.score_thresholds, strict=True
    )
    rows = [f"{rate:>8g}  {_number(found):>11}  {_number(score):>9}" for rate, found, score in points]
    return ["", "false boxes per image, sensitivity over all findings, score threshold", *rows]


def _interval(report: _Report, name: str, *, brackets: bool = False) -> str:
    low, high = report.intervals.get(name, (float("nan"), float("nan")))
    if low != low:
        return ""
    return f" ({low:.4f} to {high:.4f})" if brackets else f"{low:.4f} to {high:.4f}"


def _number(value: float) -> str:
    return "-" if value != value else f"{value:.4f}"


def _defect_lines(report: _Report) -> list[str]:
    if not report.is_submission:
        return []
    if not report.defects:
        return ["", "check: no defects"]
    shown = report.defects[:_MAX_DEFECTS_SHOWN]
    rest = len(report.defects) - len(shown)
    more = [f"  and {rest} more"] if rest else []
    return ["", f"check: {len(report.defects)} defect(s)", *(f"  {line}" for line in shown), *more]
