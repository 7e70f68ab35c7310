"""Predictions of any kind against a prepared dataset's truth: a table for people, JSON for programs, a page to show."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from vbd import storage
from vbd.data.parts import in_words
from vbd.data.prepared import Part, PreparedDataset, open_dataset
from vbd.errors import InputError
from vbd.evaluation.average_precision import Scores
from vbd.records import finds_nothing
from vbd.reports.scores.as_json import as_json
from vbd.reports.scores.measure import Report, compare, measure, measure_member, rank
from vbd.reports.scores.read import Chosen, Source, choose, choose_as, read_predictions
from vbd.reports.scores.text import as_text
from vbd.submission.asked import asked_of
from vbd.submission.check import Defect, check_submission

__all__ = ["ScoredPredictions", "score_predictions"]


@dataclass(frozen=True)
class ScoredPredictions:
    """What was found out about a file of predictions."""

    text: str  # a table for people
    scores: Scores | None  # None for a submission that cannot be scored: unreadable, or its truth is not known
    defects: tuple[str, ...]  # what is wrong with a submission.csv; empty for the other kinds


@dataclass(frozen=True)
class _Options:
    against: str | None
    replicates: int
    score_threshold: float | None


def score_predictions(
    predictions: str,
    data: str,
    *,
    part: Part | None = None,
    against: str | None = None,
    replicates: int = 1_000,
    score_threshold: float | None = None,
    output_json: str | None = None,
    output_html: str | None = None,
) -> ScoredPredictions:
    """Scores predictions against the truth of a part of a dataset, and compares them with others on the same images.

    They are detections (Parquet), a submission (csv), COCO results (JSON), a folder of jobs/predict.py, a checkpoint, or
    a folder of several with a manifest, of which the best by map_40_findings is looked at closely. Without a part it is
    the one that the predictions' images are in: the test part, or all folds that hold one of them. A submission is
    also checked line by line. `score_threshold` is for the confusion matrix and
    the pictures; without one it is where there is one false box per image. Raises InputError for a file that cannot be
    read and for images that the dataset does not hold.
    """
    if replicates < 0:
        raise InputError(f"--replicates {replicates}: want 0 (no intervals) or more")
    if score_threshold is not None and not 0 <= score_threshold <= 1:
        raise InputError(f"--score-threshold {score_threshold:g}: want 0 to 1")
    dataset = open_dataset(data)
    options = _Options(against, replicates, score_threshold)
    if predictions.endswith(".csv"):
        report = _score_submission(predictions, dataset, part, options)
    else:
        report = _score(read_predictions(predictions, dataset, part), dataset, part, options)
    if output_json:
        storage.write_json(output_json, as_json(report))
    if output_html:
        from vbd.reports.scores.page import write_scores_page  # plotly: a table does without

        write_scores_page(report, output_html)
    return ScoredPredictions(as_text(report), report.measures.scores if report.measures else None, report.defects)


def _score(sources: Sequence[Source], dataset: PreparedDataset, part: Part | None, options: _Options) -> Report:
    """A report on the best of some sources, with a line for each member of a folder of several."""
    chosen = [choose(source, dataset, part) for source in sources]
    empty = tuple(each.source.name for each in chosen if finds_nothing(each.detections))
    members = [measure_member(each, replicates=options.replicates) for each in chosen if each.source.member]
    best = chosen[max(range(len(members)), key=lambda i: rank(members[i].scores)) if members else 0]
    report = Report(
        best.source.name, dataset, best.where, members=tuple(members), empty=empty, replicates=options.replicates
    )
    return _completed(report, best, options)


def _completed(report: Report, chosen: Chosen, options: _Options) -> Report:
    measured = measure(chosen, report.dataset, replicates=options.replicates, score_threshold=options.score_threshold)
    if options.against is None:
        return replace(report, measures=measured)
    other = _other(options.against, chosen, report.dataset)
    return replace(report, measures=measured, comparison=compare(chosen, other, replicates=options.replicates))


def _other(location: str, chosen: Chosen, dataset: PreparedDataset) -> Chosen:
    """What to compare with, on the same images; of several members the best."""
    part = chosen.parts[0] if len(chosen.parts) == 1 else "train"
    others = [choose_as(chosen, source, dataset) for source in read_predictions(location, dataset, part)]
    if len(others) == 1:
        return others[0]
    return max(others, key=lambda other: rank(measure_member(other, replicates=0).scores))


def _score_submission(location: str, dataset: PreparedDataset, part: Part | None, options: _Options) -> Report:
    asked = asked_of(location, dataset, part)
    defects = check_submission(location, image_ids=asked.image_ids, original_hw=asked.sizes)
    report = Report(
        location,
        dataset,
        in_words(asked.parts),
        is_submission=True,
        defects=tuple(_defect_line(defect) for defect in defects),
        replicates=options.replicates,
    )
    try:
        (source,) = read_predictions(location, dataset, part)
        # Images that are unknown are among the defects too: what is left can be scored.
        known = [found for found in source.detections if found.image_id in asked.sizes]
        chosen = choose(replace(source, detections=known), dataset, asked.parts[0] if len(asked.parts) == 1 else None)
    except InputError as error:
        # An unreadable row is among the defects already; a test part without its truth is what users of real data have.
        return replace(report, why_not=str(error))
    return _completed(report, chosen, options)


def _defect_line(defect: Defect) -> str:
    place = [f"line {defect.line}"] if defect.line else []
    image = [f"image {defect.image_id}"] if defect.image_id else []
    return f"{', '.join([*place, *image]) or 'file'}: {defect.problem}; {defect.mend}"
