"""The report on predictions as a table for people."""

import math

from vbd.console.words import table_lines
from vbd.reports.scores.human import beside_readers
from vbd.reports.scores.measure import (
    COCO_HEADLINES,
    HEADLINES,
    Comparison,
    Measures,
    Report,
    Spans,
    findings_of,
    named_differences,
    verdict,
)
from vbd.storage import shown

_MAX_DEFECTS_SHOWN = 20
_HEAD = ("95 % interval",)  # of a column that is left out without replicates


def as_text(report: Report) -> str:
    """What was measured, in lines of a terminal."""
    note = " (synthetic data: says nothing about real X-rays)" if report.dataset.synthetic else ""
    lines = [f"{shown(report.predictions)} against the {report.where} of {shown(report.dataset.location)}{note}"]
    lines += [f"warning: {shown(name)}: finds nothing in any image" for name in report.empty]
    if report.measures is None:
        lines.append(f"not scored: {report.why_not}")
    else:
        measures = report.measures
        lines += [
            *_member_lines(report),
            *_headlines(measures),
            "",
            *_class_table(measures),
            *_subset_lines(measures),
            *_froc_lines(measures),
            *_reader_lines(measures),
            *(_comparison_lines(report.comparison) if report.comparison else []),
        ]
    return "\n".join([*lines, *_defect_lines(report)])


def number(value: float) -> str:
    """A score; "-" for an unknown one."""
    return "-" if math.isnan(value) else f"{value:.4f}"


def score_text(value: float) -> str:
    """A detector's score, which may be very small; "-" for an unknown one."""
    return "-" if math.isnan(value) else f"{value:.4g}"


def signed(value: float) -> str:
    """A difference of scores; "-" for an unknown one."""
    return "-" if math.isnan(value) else f"{value:+.4f}"


def interval_text(interval: tuple[float, float]) -> str:
    """An interval; empty for an unknown one."""
    return "" if math.isnan(interval[0]) else f"{interval[0]:.4f} to {interval[1]:.4f}"


def signed_interval(low: float, high: float) -> str:
    """An interval of a difference; "-" for an unknown one."""
    return "-" if math.isnan(low) else f"{signed(low)} to {signed(high)}"


def _interval_of(spans: Spans, name: str) -> list[str]:
    """The cell of an interval; no cell at all without replicates."""
    return [interval_text(spans[name]) or "-"] if spans else []


def _member_lines(report: Report) -> list[str]:
    if not report.members:
        return []
    rows = [("member", "map_40_findings", *_HEAD[: report.replicates > 0], "map_40", "images", "on")]
    rows += [
        (
            member.name,
            number(member.scores.map_40_findings),
            *_interval_of(member.intervals, "map_40_findings"),
            number(member.scores.map_40),
            str(member.images),
            member.where,
        )
        for member in report.members
    ]
    files = [f"{member.name}: {', '.join(map(shown, member.files))}" for member in report.members]
    return [*table_lines(rows), *files, "", f"{shown(report.predictions)}, the best of them"]


def _headlines(measures: Measures) -> list[str]:
    scores, chosen = measures.scores, measures.chosen
    left_out = f", {chosen.left_out} more outside this part left out" if chosen.left_out else ""
    lines = [
        f"{scores.num_images} images, {findings_of(scores)} boxes to find; "
        f"{len(chosen.detections)} images predicted{left_out}",
        "",
    ]
    for name, value in measures.headlines.items():
        interval = interval_text(measures.intervals.get(name, (math.nan, math.nan)))
        meaning = (HEADLINES | COCO_HEADLINES)[name]
        lines.append(f"{name:<17} {number(value)}{f' ({interval})' if interval else ''}  {meaning}")
    return lines


def _class_table(measures: Measures) -> list[str]:
    scores, coco = measures.scores, measures.coco
    rows = [("class", "AP", *_HEAD[: bool(measures.intervals)], "COCO AP50", "COCO AP", "to find", "predicted")]
    rows += [
        (
            name,
            number(value),
            *_interval_of(measures.intervals, name),
            number(coco.per_class_50.get(name, math.nan)),
            number(coco.per_class.get(name, math.nan)),
            str(scores.num_truths[name]),
            str(scores.num_detections[name]),
        )
        for name, value in scores.per_class.items()
    ]
    return table_lines(rows)


def _subset_lines(measures: Measures) -> list[str]:
    subsets = measures.subsets
    if not subsets:
        return []
    rows = [("findings of", "map_40_findings", *_HEAD[: bool(measures.intervals)], "to find")]
    for name, (scores, span) in subsets.items():
        interval = [interval_text(span) or "-"] if measures.intervals else []
        rows.append((name, number(scores.map_40_findings), *interval, str(findings_of(scores))))
    return ["", *table_lines(rows)]


def _froc_lines(measures: Measures) -> list[str]:
    pooled = measures.froc.pooled
    rows = [("false boxes per image", "sensitivity", *_HEAD[: bool(measures.froc_intervals)], "score threshold")]
    for place, rate in enumerate(pooled.false_positives_per_image):
        spans = measures.froc_intervals[place : place + 1]
        rows.append(
            (
                f"{rate:g}",
                number(pooled.sensitivities[place]),
                *(interval_text((span.low, span.high)) or "-" for span in spans),
                score_text(pooled.score_thresholds[place]),
            )
        )
    return ["", "all findings together", *table_lines(rows)]


def _reader_lines(measures: Measures) -> list[str]:
    if measures.human is None:
        return []
    rows = [("beside the readers", "their boxes", "false boxes per image", "sensitivity", "detector's", "at score")]
    rows += [
        (
            "all findings" if line.name == "all" else line.name,
            str(line.reference_boxes),
            number(line.false_positives_per_image),
            number(line.readers),
            number(line.detector),
            score_text(line.score_threshold),
        )
        for line in beside_readers(measures.human)
    ]
    return ["", *table_lines(rows)]


def _comparison_lines(comparison: Comparison) -> list[str]:
    rows = [("", "difference", *_HEAD, "verdict")]
    rows += [
        (name, signed(item.estimate), signed_interval(item.low, item.high), verdict(item))
        for name, item in named_differences(comparison).items()
    ]
    return ["", f"minus {shown(comparison.other)}, on the same images", *table_lines(rows)]


def _defect_lines(report: Report) -> list[str]:
    if not report.is_submission:
        return []
    if not report.defects:
        return ["", "check: no defects"]
    shown = report.defects[:_MAX_DEFECTS_SHOWN]
    rest = len(report.defects) - len(shown)
    more = [f"  and {rest} more"] if rest else []
    return ["", f"check: {len(report.defects)} defect(s)", *(f"  {line}" for line in shown), *more]
