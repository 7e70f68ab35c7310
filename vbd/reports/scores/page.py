"""The report on predictions as a page: what a research group shows each other."""

import math

from vbd.labels import CLASS_NAMES
from vbd.reports.page import Cell, Plot, Section, Table, write_page
from vbd.reports.scores.curves import froc_beside_readers, froc_by_class, froc_pooled, precision_recall
from vbd.reports.scores.figures import class_bars, confusion_map, differences, headlines, subset_bars
from vbd.reports.scores.human import beside_readers
from vbd.reports.scores.measure import (
    COCO_HEADLINES,
    HEADLINES,
    LEVEL,
    RANKED_BY,
    Comparison,
    Measures,
    Report,
    findings_of,
    named_differences,
    verdict,
)
from vbd.reports.scores.pictures import case_sections
from vbd.reports.scores.text import interval_text, number, score_text, signed, signed_interval
from vbd.storage import shown

_MAX_DEFECTS_SHOWN = 50


def write_scores_page(report: Report, output: str) -> None:
    """Writes the report as one HTML page that works offline; `output` may be a path or a URI."""
    subtitle = (
        f"{shown(report.predictions)} against the {report.where} of {shown(report.dataset.location)} "
        f"(dataset {report.dataset.fingerprint})"
    )
    sections = _defects(report)
    if report.measures is None:
        sections.insert(0, Section("Not scored", [report.why_not]))
    else:
        sections = [*_sections(report, report.measures), *sections]
    write_page(output, "How good the predictions are", sections, synthetic=report.dataset.synthetic, subtitle=subtitle)


def _sections(report: Report, measures: Measures) -> list[Section]:
    return [
        _short(report, measures),
        *(_compared(report.comparison) if report.comparison else []),
        *_members(report),
        _classes(measures),
        Section("Precision and recall", [precision_recall(measures)]),
        _froc(measures),
        *_readers(measures),
        *_subsets(measures),
        _confusion(measures),
        *case_sections(
            report.dataset,
            measures.chosen.detections,
            measures.chosen.truths,
            score_threshold=measures.score_threshold,
        ),
        _how_to_read(report),
    ]


def _short(report: Report, measures: Measures) -> Section:
    scores, chosen = measures.scores, measures.chosen
    text = [
        f"{scores.num_images:,} images, {findings_of(scores):,} findings to find; "
        f"{len(chosen.detections):,} images have a row in the predictions."
    ]
    if len(chosen.detections) < scores.num_images:
        missing = scores.num_images - len(chosen.detections)
        text.append(f"{missing:,} images of the {report.where} have no row: every finding in them counts as missed.")
    if report.comparison:
        text.append(_verdict_sentence(report.comparison))
    rows: list[tuple[Cell, ...]] = [
        (name, number(value), _interval_cell(measures, name), (HEADLINES | COCO_HEADLINES)[name])
        for name, value in measures.headlines.items()
    ]
    table = Table("The main scores", ("score", "value", "95 % interval", "what it is"), rows)
    return Section("In short", [*text, headlines(measures.headlines, measures.intervals), table])


def _verdict_sentence(comparison: Comparison) -> str:
    item, other = getattr(comparison.difference, RANKED_BY), shown(comparison.other)
    if math.isnan(item.estimate):
        return f"Nothing can be compared with {other}: there is no finding."
    words = {
        "better": f"These predictions are better than {other}",
        "worse": f"These predictions are worse than {other}",
        "cannot tell": f"Whether these predictions or {other} are better cannot be told",
    }[verdict(item)]
    interval = f" (95 % interval {signed(item.low)} to {signed(item.high)})" if not math.isnan(item.low) else ""
    return f"{words}: {RANKED_BY} differs by {signed(item.estimate)}{interval}, on the same images."


def _compared(comparison: Comparison) -> list[Section]:
    ours = named_differences(comparison)
    rows: list[tuple[Cell, ...]] = [
        (name, _theirs(comparison, name), signed(item.estimate), signed_interval(item.low, item.high), verdict(item))
        for name, item in ours.items()
    ]
    columns = ("", shown(comparison.other), "difference", "95 % interval", "verdict")
    note = (
        "Both were weighed on the same bootstrap replicates of the same images. With fourteen classes, about one "
        "interval in twenty misses 0 by chance alone."
    )
    table = Table("These predictions minus the others", columns, rows)
    return [Section("Against the others", [differences(comparison), table, note])]


def _theirs(comparison: Comparison, name: str) -> str:
    scores = comparison.scores
    return number(scores.per_class[name] if name in scores.per_class else float(getattr(scores, name)))


def _members(report: Report) -> list[Section]:
    if not report.members:
        return []
    rows: list[tuple[Cell, ...]] = [
        (
            member.name,
            number(member.scores.map_40_findings),
            interval_text(member.intervals.get(RANKED_BY, (math.nan, math.nan))) or "-",
            number(member.scores.map_40),
            member.images,
            member.where,
            ", ".join(map(shown, member.files)),
        )
        for member in report.members
    ]
    columns = ("member", RANKED_BY, "95 % interval", "map_40", "images", "on", "detections")
    blocks: list[str | Table] = [Table("Each member on images it did not train on", columns, rows)]
    blocks.append(f"The rest of this page is about {shown(report.predictions)}, the best of them.")
    if len({member.where for member in report.members}) > 1:
        blocks.append("The members were scored on different images, so that their scores do not compare exactly.")
    return [Section("The members", blocks)]


def _classes(measures: Measures) -> Section:
    scores, coco = measures.scores, measures.coco
    stricter = list(measures.by_agreement.items())[1:]
    columns = ["class", "AP", "95 % interval", "to find", "predicted", "COCO AP50", "COCO AP"]
    columns += [f"AP, {level}+ readers" for level, _ in stricter]
    rows: list[list[Cell]] = [
        [
            name,
            number(value),
            _interval_cell(measures, name),
            scores.num_truths[name],
            scores.num_detections[name],
            number(coco.per_class_50.get(name, math.nan)),
            number(coco.per_class.get(name, math.nan)),
            *(number(scores_of_level.per_class[name]) for _, scores_of_level in stricter),
        ]
        for name, value in scores.per_class.items()
    ]
    return Section("Each class", [class_bars(measures), Table("Average precision of each class", columns, rows)])


def _interval_cell(measures: Measures, name: str) -> str:
    return interval_text(measures.intervals.get(name, (math.nan, math.nan))) or "-"


def _froc(measures: Measures) -> Section:
    pooled, per_class = measures.froc.pooled, measures.froc.per_class
    spans = dict(zip(pooled.false_positives_per_image, measures.froc_intervals, strict=False))
    rows: list[tuple[Cell, ...]] = [
        (
            f"{rate:g}",
            number(found),
            (interval_text((spans[rate].low, spans[rate].high)) or "-") if rate in spans else "-",
            score_text(score),
        )
        for rate, found, score in zip(
            pooled.false_positives_per_image, pooled.sensitivities, pooled.score_thresholds, strict=True
        )
    ]
    points = Table(
        "Operating points of all findings together",
        ("false boxes per image", "sensitivity", "95 % interval", "score threshold"),
        rows,
    )
    known = [name for name in CLASS_NAMES if per_class[name].num_truths]
    columns = ("class", "to find", *(f"at {rate:g}" for rate in pooled.false_positives_per_image), "mean")
    classes: list[tuple[Cell, ...]] = [
        (
            name,
            per_class[name].num_truths,
            *(number(value) for value in per_class[name].sensitivities),
            number(per_class[name].mean_sensitivity),
        )
        for name in known
    ]
    blocks: list[str | Plot | Table] = [
        froc_pooled(measures),
        points,
        froc_by_class(measures),
        Table("Sensitivity of each class at so many false boxes of it per image", columns, classes),
    ]
    return Section("Findings against false boxes", blocks)


def _readers(measures: Measures) -> list[Section]:
    """The readers beside the detector; none where no two readers of an image are known."""
    if measures.human is None:
        return []
    lines = beside_readers(measures.human)
    rows: list[tuple[Cell, ...]] = [
        (
            "all findings" if line.name == "all" else line.name,
            line.reference_boxes,
            number(line.false_positives_per_image),
            number(line.readers),
            number(line.detector),
            score_text(line.score_threshold),
        )
        for line in lines
    ]
    columns = (
        *("", "boxes of the others", "readers' false boxes per image", "readers' sensitivity"),
        *("detector's at that rate", "score threshold"),
    )
    table = Table("Readers and detector at the readers' rate of false boxes", columns, rows)
    note = (
        "A reader's box counts when the other readers drew it too, so that readers who see more than others look worse. "
        "The boxes of the others are those of fewer readers than the truth of the rest of this page."
    )
    return [Section("Beside the readers", [froc_beside_readers(measures.human), table, note])]


def _subsets(measures: Measures) -> list[Section]:
    """Scores by agreement of the readers and by size; none where neither is known."""
    subsets = measures.subsets
    if not subsets:
        return []
    rows: list[tuple[Cell, ...]] = [
        (
            name,
            number(scores.map_40_findings),
            interval_text(span) or "-",
            number(scores.map_coco_101),
            findings_of(scores),
        )
        for name, (scores, span) in subsets.items()
    ]
    columns = ("findings of", RANKED_BY, "95 % interval", "map_coco_101", "to find")
    note = (
        "Size is the share of the image's area, with COCO's bounds at 512 pixels: small is up to 0.39 % of it, large "
        "3.5 % and more."
    )
    table = Table("Scores on a part of the findings", columns, rows)
    blocks: list[str | Plot | Table] = [subset_bars(subsets), table, *([note] if measures.by_size else [])]
    return [Section("By agreement and size", blocks)]


def _confusion(measures: Measures) -> Section:
    threshold = f"Boxes count from a score of {measures.score_threshold:.4g}, {measures.threshold_reason}."
    return Section("What is taken for what", [threshold, confusion_map(measures.confusion)])


def _defects(report: Report) -> list[Section]:
    if not report.is_submission:
        return []
    if not report.defects:
        return [Section("Check of the submission", ["No defects."])]
    shown = report.defects[:_MAX_DEFECTS_SHOWN]
    rest = len(report.defects) - len(shown)
    table = Table(f"{len(report.defects):,} defects", ("line", "what is wrong"), [_split(line) for line in shown])
    return [Section("Check of the submission", [table, *([f"And {rest:,} more."] if rest else [])])]


def _split(line: str) -> tuple[str, str]:
    place, _, problem = line.partition(": ")
    return place, problem


def _how_to_read(report: Report) -> Section:
    texts = [
        "A detection is true when it overlaps a finding of its class with IoU > 0.4 that no better one has taken; a "
        "second box on a found finding is false. Boxes are compared in pixels of the original image.",
        'map_40 counts "No finding" as a fifteenth class, whose box stands for the whole image; predictions without a '
        "probability that an image is normal score 0 there.",
        "COCO's numbers ask for tighter boxes and take at most 100 of each image and class.",
    ]
    if report.replicates:
        texts.append(
            f"Intervals hold the middle {LEVEL:.0%} of {report.replicates:,} bootstrap replicates over images. They tell "
            "how far a score moves with the images that happened to be in the part, not how it moves with another "
            "training run."
        )
    return Section("How to read this page", [*texts, "docs/evaluation.md of the project says what each number means."])
