"""The report on an ensemble as a page: what it is made of, what each part is worth, and how far its numbers can be trusted."""

import math

from vbd.console.words import count_of
from vbd.ensemble.result import ENSEMBLE, EnsembleResult
from vbd.ensemble.scores.reliability import Reliability
from vbd.ensemble.summary import SOURCES, VERDICTS, gate_text, interval_text
from vbd.evaluation.intervals import Interval
from vbd.labels import NO_FINDING_NAME
from vbd.reports.ensemble.figures import (
    diversity_map,
    gate_curves,
    normal_reliability,
    reliability_diagrams,
    scores_by_class,
)
from vbd.reports.ensemble.measure import Measures, measure
from vbd.reports.ensemble.pictures import case_sections
from vbd.reports.page import Cell, Plot, Section, Table, write_page
from vbd.storage import shown

# Models beside each other in a figure or a table of classes: those with the largest weights.
_MAX_SHOWN = 5


def write_ensemble_page(result: EnsembleResult, output: str, *, replicates: int = 1_000) -> None:
    """Writes the report as one HTML page that works offline; `output` may be a path or a URI."""
    measures = measure(result, replicates=replicates)
    sections = [
        _short(result),
        _members(result, measures),
        *_gain(result),
        *_calibration(measures),
        *_diversity(result),
        _no_finding(result, measures),
        _gates(result),
        _classes(result, measures),
        *case_sections(result.dataset, result.fitted.unseen, result.truths),
        _how_to_read(result),
    ]
    subtitle = f"{shown(result.output)}, on dataset {result.dataset.fingerprint}. For research; not for clinical use."
    write_page(output, "The ensemble", sections, synthetic=result.dataset.synthetic, subtitle=subtitle)


def _short(result: EnsembleResult) -> Section:
    gain, recipe, chosen = result.fitted.gain, result.fitted.recipe, result.fitted.gates[result.fitted.recipe.gate.kind]
    texts = [
        f"{count_of(len(result.detectors), 'detector')} and {count_of(len(result.classifiers), 'classifier')} on "
        f"{len(result.truths):,} images that none "
        "of them was trained on; members, weights, calibration, P(no finding) and gate were all fitted there, and scored on "
        "halves that took no part.",
    ]
    if gain is None:
        texts.append("There is no detector: the submission tells normal images alone.")
    elif len(result.detectors) > 1:
        texts.append(
            f"Over the best single detector the ensemble gains {interval_text(gain.gain)}: {VERDICTS[gain.verdict]}."
        )
    texts.append(
        f"P(no finding) is told from {SOURCES[recipe.no_finding.source]}. The gate: "
        f"{gate_text(recipe.gate.kind, recipe.gate.parameter)}, worth {interval_text(chosen.over_nothing)} of map_40 over none."
    )
    rows: list[tuple[Cell, ...]] = [
        (name, float(getattr(result.out_of_fold, name)), *_test_cells(result, ENSEMBLE, name))
        for name in ("map_40", "map_40_findings", "map_coco_101")
    ]
    normal = result.out_of_fold.per_class[NO_FINDING_NAME]
    rows.append((f"AP of {NO_FINDING_NAME}", normal, *_test_cells(result, ENSEMBLE, NO_FINDING_NAME)))
    columns = ("score of the ensemble", "validation", *(["test"] if result.test else []))
    return Section("In short", [*texts, Table("The ensemble on images that took no part", columns, rows)])


def _test_cells(result: EnsembleResult, name: str, score: str) -> list[Cell]:
    """One cell, or none where the truth of the test part is not known."""
    if not result.test:
        return []
    scores = result.test[name]
    return [scores.per_class[score] if score in scores.per_class else float(getattr(scores, score))]


def _members(result: EnsembleResult, measures: Measures) -> Section:
    recipe, blocks = result.fitted.recipe, []
    for title, names, score in (
        ("Detectors by map_40_findings", result.detectors, "map_40_findings"),
        (f"Classifiers by average precision of {NO_FINDING_NAME}", result.classifiers, NO_FINDING_NAME),
    ):
        if not names:
            continue
        rows: list[tuple[Cell, ...]] = []
        for name in [*names, ENSEMBLE]:
            intervals = measures.raw.get(name, measures.intervals[name])
            item = intervals.per_class.get(score, intervals.map_40_findings)
            used = (
                recipe.weights.get(name, 0.0) if score not in intervals.per_class else _yes(name in recipe.classifiers)
            )
            rows.append((name, "" if name == ENSEMBLE else used, *_cells(item), *_test_cells(result, name, score)))
        weight = "used" if score == NO_FINDING_NAME else "weight"
        columns = ("member", weight, "validation", "95 % interval", *(["test"] if result.test else []))
        blocks.append(Table(title, columns, rows))
    return Section("The members", blocks)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _cells(item: Interval) -> tuple[Cell, Cell]:
    return item.estimate, "-" if math.isnan(item.low) else f"{item.low:.3f} to {item.high:.3f}"


def _gain(result: EnsembleResult) -> list[Section]:
    gain, choice = result.fitted.gain, result.fitted.choice
    if gain is None or choice is None or len(result.detectors) < 2:
        return []
    text = (
        f"Made without a half of the images and scored on it, for each half: the ensemble reaches map_40_findings "
        f"{gain.fused:.4f}, the best single detector {gain.single:.4f}. The gain is {interval_text(gain.gain)}: "
        f"{VERDICTS[gain.verdict]}."
    )
    history: list[tuple[Cell, ...]] = [
        (f"{i}", step.added, step.score) for i, step in enumerate(choice.selection.history, start=1)
    ]
    weights = {"all images": choice.selection.weights} | {
        f"without half {i}": each.weights for i, each in enumerate(gain.selections, start=1)
    }
    rows: list[tuple[Cell, ...]] = [
        (name, *(each.get(name, 0.0) for each in weights.values())) for name in result.detectors
    ]
    blocks: list[str | Table] = [
        text,
        Table("Members in the order they were added", ("round", "added", "map_40_findings"), history),
        Table("Weights", ("detector", *weights), rows),
    ]
    if choice.selection.search:
        best = max(choice.selection.search)
        blocks.append(
            f"{len(choice.selection.search)} trials of a search for other weights and rules: the best reached {best:.4f}."
        )
    return [Section("What fusing gains", blocks)]


def _calibration(measures: Measures) -> list[Section]:
    if not measures.after:
        return []
    shown = dict(list(measures.after.items())[-9:])
    rows: list[tuple[Cell, ...]] = [
        (name, *_error_cells(measures.before.get(name)), *_error_cells(each)) for name, each in measures.after.items()
    ]
    columns = (
        "model",
        *(f"{what}, {when}" for when in ("raw", "calibrated") for what in ("error", "log loss", "Brier")),
    )
    table = Table("Expected calibration error with its 95 % interval, log loss and Brier score", columns, rows)
    note = (
        "Scores are calibrated before they are fused, not after it: the ensemble's own may lie off the line. Only the order "
        "counts in the competition."
    )
    return [Section("Do scores keep their word?", [reliability_diagrams(measures.before, shown), table, note])]


def _error_cells(each: Reliability | None) -> tuple[Cell, Cell, Cell]:
    if each is None or math.isnan(each.error.estimate):
        return "-", "-", "-"
    return (
        f"{each.error.estimate:.3f} ({each.error.low:.3f} to {each.error.high:.3f})",
        each.log_loss,
        each.brier,
    )


def _diversity(result: EnsembleResult) -> list[Section]:
    if len(result.detectors) < 2 or not result.diversity.num_findings:
        return []
    rows: list[tuple[Cell, ...]] = [
        (
            f"{pair.first}, {pair.second}",
            *(f"{value:.1%}" for value in (pair.both, pair.first_only, pair.second_only, pair.neither)),
            pair.score_correlation,
        )
        for pair in result.diversity.pairs
    ]
    columns = ("pair", "both", "first alone", "second alone", "neither", "rank correlation")
    blocks: list[str | Plot | Table] = [
        diversity_map(result.diversity),
        Table("Findings by who found them", columns, rows),
    ]
    return [Section("How unlike the detectors are", blocks)]


def _no_finding(result: EnsembleResult, measures: Measures) -> Section:
    fitted = result.fitted
    rows: list[tuple[Cell, ...]] = [
        (
            SOURCES[source],
            score.average_precision,
            score.auc,
            *_cells(score.log_loss),
            _yes(source == fitted.recipe.no_finding.source),
        )
        for source, score in fitted.sources.items()
    ]
    best = fitted.best_source
    rows.append(("the one chosen without the image", best.average_precision, best.auc, *_cells(best.log_loss), ""))
    columns = ("P(no finding) from", "AP", "AUC", "log loss", "95 % interval", "used")
    return Section(
        "Normal images",
        [
            Table("Sources on images that they were not fitted on", columns, rows),
            normal_reliability(measures.no_finding),
        ],
    )


def _gates(result: EnsembleResult) -> Section:
    chosen = result.fitted.recipe.gate.kind
    rows: list[tuple[Cell, ...]] = [
        (
            gate_text(kind, worth.parameter),
            worth.score,
            _difference(worth.over_append) if kind != "append" else "-",
            _difference(worth.over_nothing),
            ", ".join(f"{parameter:g}" for parameter in worth.parameters) if kind != "append" else "-",
            _yes(kind == chosen),
        )
        for kind, worth in result.fitted.gates.items()
    ]
    columns = (
        "gate",
        "map_40",
        "over append (95 % interval)",
        "over nothing (95 % interval)",
        "tuned on each half",
        "used",
    )
    note = (
        "Every gate appends `14 p 0 0 1 1`. Of itself the ensemble only appends and damps, the latter where it gains; what takes "
        "boxes away must be asked for (--gate replace, quota)."
    )
    table = Table("What each gate is worth on halves that took no part", columns, rows)
    return Section("Gates", [note, table, gate_curves(result.fitted.gates)])


def _difference(item: Interval) -> str:
    return f"{item.estimate:+.4f}" + ("" if math.isnan(item.low) else f" ({item.low:+.4f} to {item.high:+.4f})")


def _classes(result: EnsembleResult, measures: Measures) -> Section:
    weights = result.fitted.recipe.weights
    order = sorted(result.detectors, key=lambda name: -weights.get(name, 0.0))[: _MAX_SHOWN - 1]
    shown = {name: measures.intervals[name] for name in [*order, ENSEMBLE]}
    rows: list[tuple[Cell, ...]] = [
        (name, count, *(_class_cell(model, each.per_class[name], name) for model, each in shown.items()))
        for name, count in result.out_of_fold.num_truths.items()
        if count
    ]
    table = Table("Average precision of each class with its 95 % interval", ("class", "to find", *shown), rows)
    note = "Detectors are calibrated without each image; the ensemble is made without each half."
    return Section("Each class", [scores_by_class(shown), table, note])


def _class_cell(model: str, item: Interval, name: str) -> str:
    is_told = model == ENSEMBLE or name != NO_FINDING_NAME
    return (
        "-" if math.isnan(item.estimate) or not is_told else f"{item.estimate:.3f} ({item.low:.3f} to {item.high:.3f})"
    )


def _how_to_read(result: EnsembleResult) -> Section:
    texts = [
        "Validation scores are on images that no member was trained on. The ensemble's own are honest as well: the images were "
        "parted into halves, and for each half members, weights, calibrations, P(no finding) and the gate's parameter were "
        "chosen on the other one. What is submitted is made on all of them.",
        "Intervals hold the middle 95 % of bootstrap replicates over images, and differences are paired: they tell how far a "
        "score moves with the images, not with another training.",
    ]
    if len(result.truths) < 500:
        texts.append(
            f"{len(result.truths):,} images are few: rare classes have wide intervals, and gains of a hundredth are noise."
        )
    return Section(
        "How to read this page", [*texts, "docs/ensemble.md of the project says more. Not for clinical use."]
    )
