"""The report on predictions as JSON for programs; docs/evaluation.md says what each key means."""

from dataclasses import asdict
from typing import Any

from vbd.evaluation.froc import FrocCurve
from vbd.reports.scores.human import Human, beside_readers
from vbd.reports.scores.measure import (
    IOU_THRESHOLD,
    LEVEL,
    Comparison,
    Measures,
    Member,
    Report,
    named_differences,
    verdict,
)

SCHEMA = 2
# What is null when nothing could be scored.
_MEASURED = (
    *("scores", "intervals", "coco", "by_agreement", "by_size", "froc", "froc_per_class"),
    *("human_reference", "confusion"),
)


def as_json(report: Report) -> dict[str, Any]:
    """All numbers of a report; NaN, which becomes null, where there is nothing to measure."""
    content: dict[str, Any] = {
        "schema": SCHEMA,
        "predictions": report.predictions,
        "dataset": report.dataset.fingerprint,
        "synthetic": report.dataset.synthetic,
        "part": report.where,
        "iou_threshold": IOU_THRESHOLD,
        "level": LEVEL,
        "replicates": report.replicates,
        "defects": list(report.defects),
        "not_scored": report.why_not,
        "members": [_member(member) for member in report.members],
        "against": _comparison(report.comparison) if report.comparison else None,
    }
    return content | _measures(report.measures)


def _measures(measures: Measures | None) -> dict[str, Any]:
    if measures is None:
        return dict.fromkeys(_MEASURED) | {"intervals": {}}
    values = (
        asdict(measures.scores),
        measures.intervals,
        asdict(measures.coco),
        {str(level): _subset(measures, level) for level in measures.by_agreement},
        {size: asdict(scores) for size, scores in measures.by_size.items()},
        _froc(measures.froc.pooled) | {"intervals": [(span.low, span.high) for span in measures.froc_intervals]},
        {name: _froc(curve) for name, curve in measures.froc.per_class.items()},
        _human(measures.human) if measures.human else None,
        _confusion(measures),
    )
    return dict(zip(_MEASURED, values, strict=True))


def _subset(measures: Measures, level: int) -> dict[str, Any]:
    span = measures.agreement_intervals.get(level)
    return asdict(measures.by_agreement[level]) | {"interval": span}


def _confusion(measures: Measures) -> dict[str, Any]:
    found = measures.confusion
    return {
        "matrix": found.matrix.tolist(),
        "rows": found.rows,
        "columns": found.columns,
        "score_threshold": found.score_threshold,
        "chosen": measures.threshold_reason,
    }


def _human(human: Human) -> dict[str, Any]:
    return {
        "readers": [asdict(point) for point in human.reference.readers],
        "pooled": asdict(human.reference.pooled),
        "beside": [asdict(line) for line in beside_readers(human)],
        "detector_froc": _froc(human.detector.pooled),
    }


def _froc(curve: FrocCurve) -> dict[str, Any]:
    return {
        "false_positives_per_image": curve.false_positives_per_image,
        "sensitivities": curve.sensitivities,
        "score_thresholds": curve.score_thresholds,
        "mean_sensitivity": curve.mean_sensitivity,
        "num_truths": curve.num_truths,
    }


def _member(member: Member) -> dict[str, Any]:
    return {
        "name": member.name,
        "files": list(member.files),
        "part": member.where,
        "images": member.images,
        "scores": asdict(member.scores),
        "intervals": member.intervals,
    }


def _comparison(comparison: Comparison) -> dict[str, Any]:
    return {
        "predictions": comparison.other,
        "scores": asdict(comparison.scores),
        "difference": {
            name: asdict(item) | {"verdict": verdict(item)} for name, item in named_differences(comparison).items()
        },
    }
