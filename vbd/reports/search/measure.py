"""What the kept detections of a search's trials say: how sure each score is, and which classes a trial finds."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vbd import storage
from vbd.data.prepared import PreparedDataset, read_truths
from vbd.detections import read_detections
from vbd.evaluation.intervals import bootstrap_of
from vbd.evaluation.matching import match
from vbd.evaluation.score import interval_of
from vbd.labels import CLASS_NAMES
from vbd.records import Detections, Trial, Truth
from vbd.reports.page import Plot, Section, label, matrix
from vbd.reports.search.figures import families, strength_in_words
from vbd.search.kept.leaderboard import is_scored

# Weighing so many boxes a thousand times takes about ten seconds: no more trials are measured.
_MAX_BOXES = 2_000_000
_READ_AT_ONCE = 4
_MAX_ROWS = 30  # of the map of classes
_SEED = 0  # of the bootstrap: equal detections get equal intervals


@dataclass(frozen=True)
class Measured:
    """What the detections of a trial's best checkpoint are worth on its validation fold."""

    trial: Trial
    interval: tuple[float, float]  # 95 % bootstrap interval of the score, over images
    per_class: dict[str, float]  # AP of the 14 findings; NaN where there is nothing to be found
    num_truths: dict[str, int]  # boxes to be found


def measure_trials(
    trials: Sequence[Trial], dataset: PreparedDataset, *, max_boxes: int = _MAX_BOXES
) -> dict[str, Measured]:
    """Scored trials whose detections are kept, by trial id: the best of each family first, then the best of all.

    `trials` are best first. No more are read once there were `max_boxes` boxes.
    """
    kept = [trial for trial in best_first(trials) if trial.detections]
    truths: dict[int, list[Truth]] = {}
    found: dict[str, Measured] = {}
    boxes = 0
    for start in range(0, len(kept), _READ_AT_ONCE):
        batch = kept[start : start + _READ_AT_ONCE]
        for trial, detections in zip(batch, storage.in_threads(read_kept, [t.detections for t in batch]), strict=True):
            fold = trial.config.fold
            if fold not in truths:
                truths[fold] = read_truths(dataset, fold)
            if detections:
                found[trial.trial_id] = _measured(trial, detections, truths[fold])
            boxes += sum(len(each.boxes) for each in detections)
        if boxes >= max_boxes:
            break
    return found


def best_first(trials: Sequence[Trial]) -> list[Trial]:
    """The scored trials, the best of each family in front of the others; `trials` are best first."""
    scored = [trial for trial in trials if is_scored(trial)]
    first = {family: next(t for t in scored if t.config.detector == family) for family in families(scored)}
    leaders = sorted(first.values(), key=scored.index)
    return [*leaders, *(trial for trial in scored if trial not in leaders)]


def read_kept(location: str) -> list[Detections]:
    """The detections of a trial; none where they are not there any more."""
    return read_detections(location) if storage.exists(location) else []


def _measured(trial: Trial, detections: Sequence[Detections], truths: Sequence[Truth]) -> Measured:
    matches = match(detections, truths)
    found = bootstrap_of(matches, seed=_SEED)
    score = interval_of(trial.config.detector, found)
    return Measured(
        trial,
        (score.low, score.high),
        {name: found.per_class[name].estimate for name in CLASS_NAMES},
        dict(zip(CLASS_NAMES, matches.num_truths.sum(1).tolist(), strict=False)),
    )


def class_map(measured: dict[str, Measured], *, num_scored: int) -> list[Section]:
    """Average precision of each class by the best trials, as coloured cells; no section without measured trials."""
    if not measured:
        return []
    # The best of each family were measured first, so that each is among the rows.
    shown = sorted(list(measured.values())[:_MAX_ROWS], key=lambda item: -item.trial.score)
    counts = {name: _counts(shown, name) for name in CLASS_NAMES}
    names = sorted(CLASS_NAMES, key=lambda name: -max(counts[name]))
    values = np.array([[item.per_class[name] for name in names] for item in shown])
    columns = [f"{name} ({'–'.join(f'{n:,}' for n in counts[name])})" for name in names]
    top = max(0.05, float(np.nanmax(values, initial=0.0)))
    plot = matrix(
        values,
        [_row_name(item.trial) for item in shown],
        columns,
        texts=[[f"{value:.2f}" for value in row] for row in values],
        hovers=[
            [f"{_row_name(item.trial)}<br>{name}: AP {item.per_class[name]:.3f}, {item.num_truths[name]:,} to find"
             for name in names]
            for item in shown
        ],
        high=top,
    )  # fmt: skip
    which = "the scored trials" if len(shown) == num_scored else f"the best {len(shown)} of {num_scored} scored trials"
    caption = (
        f"Average precision of each class (IoU > 0.4) on the validation fold, of {which}; the brightest cell is "
        f"{top:.2f}. In brackets how many boxes there are to find: the fewer, the more a cell is chance. A column "
        "without boxes is empty."
    )
    return [Section("Each class", [Plot(plot, caption)])]


def _counts(shown: Sequence[Measured], name: str) -> list[int]:
    """The fewest and the most boxes of a class on the trials' folds; one number where they are equal."""
    numbers = {item.num_truths[name] for item in shown}
    return sorted({min(numbers), max(numbers)})


def _row_name(trial: Trial) -> str:
    config = trial.config
    strength = "" if config.policy == "A" else f" {strength_in_words(config)}"
    return label(f"{trial.trial_id} {config.detector} {config.variant} {config.policy}{strength}")
