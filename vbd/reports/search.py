"""The report of a search: what was tried, what won, and what cannot be told from it."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vbd import storage
from vbd.config import POLICIES
from vbd.data.prepared import open_dataset, read_truths
from vbd.records import Trial
from vbd.reports.page import Cell, Section, Table, write_page
from vbd.reports.search_figures import (
    METRIC,
    Intervals,
    curves,
    described,
    effective_strength,
    families,
    gantt,
    is_complete,
    is_scored,
    parallel,
    strengths,
)
from vbd.training.members import OUT_OF_FOLD, read_members

if TYPE_CHECKING:
    from vbd.search.leaderboard import Leaderboard

# With fewer finished trials of a policy, the spread between equal runs is not known.
MIN_TRIALS_PER_POLICY = 3


def write_search_report(run: str, output: str, *, data: str | None = None) -> None:
    """Writes what a search found as one HTML page that works offline.

    With the dataset's folder in `data`, the kept checkpoints get bootstrap intervals from their out-of-fold detections.
    """
    from vbd.search.leaderboard import read_leaderboard

    board = read_leaderboard(run)
    intervals = _kept_intervals(run, data) if data else {}
    sections = [
        _findings(board),
        _leaderboard(board, intervals),
        *_ensemble(run),
        curves(board.trials),
        strengths(board.trials, intervals),
        parallel(board.trials),
        gantt(board.trials),
        _states(board.trials),
    ]
    subtitle = f"{run}: preset {board.preset}, {len(board.trials)} trials on dataset {board.dataset}"
    write_page(output, "What the search found", sections, synthetic=board.synthetic, subtitle=subtitle)


# ------------------------------------------------------------------------------------------------------------ findings


def _findings(board: "Leaderboard") -> Section:
    scored = [trial for trial in board.trials if is_scored(trial)]
    if not scored:
        return Section("In short", ["No trial ended with a score; the reasons stand below."])
    best = scored[0]
    lines = [
        f"The best single model is trial {best.trial_id}: {described(best.config)}, "
        f"{METRIC} {best.score:.3f} on fold {best.config.fold} after {best.steps:,} steps."
    ]
    lines += [answer_for_family(family, board.trials) for family in families(board.trials)]
    note = (
        "Trials of a policy also differ in learning rate and more; trials that were stopped early do not count here. "
        "Scores are of one validation fold, on which the trials were also compared, so the best one is flattered."
    )
    return Section("In short", [*lines, note])


def answer_for_family(family: str, trials: Sequence[Trial]) -> str:
    """In words, which augmentation is best for a detector, or why that cannot be told."""
    of_policy = {
        policy: [
            t.score for t in trials if t.config.detector == family and t.config.policy == policy and is_complete(t)
        ]
        for policy in POLICIES
    }
    enough = {policy: scores for policy, scores in of_policy.items() if len(scores) >= MIN_TRIALS_PER_POLICY}
    if len(enough) < 2:
        counts = ", ".join(f"{policy}: {len(scores)}" for policy, scores in of_policy.items() if scores) or "none"
        return (
            f"{family}: which augmentation is best cannot be told; at least {MIN_TRIALS_PER_POLICY} finished trials "
            f"of two policies are needed (finished: {counts})."
        )
    first, second = sorted(enough, key=lambda policy: -np.mean(enough[policy]))[:2]
    gap = float(np.mean(enough[first]) - np.mean(enough[second]))
    # Welch's standard error of a difference of two means; two of them are about 95 %.
    error = math.sqrt(sum(float(np.var(enough[p], ddof=1)) / len(enough[p]) for p in (first, second)))
    means = f"policy {first} has the best mean ({np.mean(enough[first]):.3f} of {len(enough[first])} trials)"
    if gap <= 2 * error:
        return (
            f"{family}: {means}, but which augmentation is best cannot be told: it leads policy {second} by {gap:.3f}, "
            f"within twice the standard error of {error:.3f}."
        )
    return f"{family}: {means}; it leads policy {second} by {gap:.3f}, standard error {error:.3f}."


# -------------------------------------------------------------------------------------------------------------- tables


def _leaderboard(board: "Leaderboard", intervals: Intervals) -> Section:
    columns = ["trial", "detector", "variant", "policy", "strength", "learning rate", "steps", METRIC, "status"]
    rows: list[list[Cell]] = [
        [
            trial.trial_id,
            trial.config.detector,
            trial.config.variant,
            trial.config.policy,
            f"{effective_strength(trial.config):g}",
            f"{trial.config.learning_rate:.3g}",
            f"{trial.steps:,} of {trial.config.steps:,}",
            trial.score,
            trial.status,
        ]
        for trial in board.trials
    ]
    if intervals:
        columns.insert(-1, "95 % interval")
        for trial, row in zip(board.trials, rows, strict=True):
            known = intervals.get(trial.trial_id)
            row.insert(-1, "{:.3f} to {:.3f}".format(*known) if known else "")
    note = "Intervals are bootstrap intervals over the validation fold's images, for the kept checkpoints."
    return Section("Leaderboard", [Table("All trials, best first", columns, rows), *([note] if intervals else [])])


def _ensemble(run: str) -> list[Section]:
    """What `ensemble.json` says, when the kept checkpoints were already fused; a field it lacks is left out."""
    location = storage.join(run, "ensemble.json")
    if not storage.exists(location):
        return []
    content = storage.read_json(location)
    weights, singles = content.get("weights", {}), content.get("single_scores", {})
    test = content.get("test", {})
    rows: list[tuple[Cell, ...]] = [
        (
            name,
            _score(weights, name),
            _score(singles, name),
            _score(test.get(name), METRIC),
            _score(test.get(name), "map_40"),
        )
        for name in sorted(singles, key=lambda name: -(singles[name] or 0))
    ]
    fused = test.get("ensemble")
    own = _score(content.get("out_of_fold"), METRIC)
    rows.append(("ensemble", 1.0, own, _score(fused, METRIC), _score(fused, "map_40")))
    columns = ("model", "weight", f"{METRIC} out of fold", f"{METRIC} test", "map_40 test")
    blocks: list[str | Table] = [_gain(content.get("gain", {})), Table("The ensemble and its members", columns, rows)]
    if fused:
        names = list(test)
        classes = [(c, *(_score(test[name].get("per_class"), c) for name in names)) for c in fused.get("per_class", {})]
        blocks.append(Table("Average precision of each class on the test part", ("class", *names), classes))
    return [Section("Ensemble", [block for block in blocks if block])]


def _gain(gain: dict[str, Any]) -> str:
    if not gain:
        return ""
    interval = gain["interval"]
    meaning = {
        "ensemble": "the ensemble is better",
        "undecided": "which of the two is better cannot be told",
        "single": "the single model is used alone",
    }
    return (
        f"On images that nothing was chosen on, the ensemble reaches {METRIC} {_score(gain, 'fused'):.3f} and the best single "
        f"model {_score(gain, 'single'):.3f}: a gain of {_score(interval, 'estimate'):.3f} (95 % interval "
        f"{_score(interval, 'low'):.3f} to {_score(interval, 'high'):.3f}); {meaning.get(gain['verdict'], gain['verdict'])}."
    )


def _score(values: dict[str, Any] | None, name: str) -> float:
    """A number of a JSON object; NaN when it is null or absent."""
    value = (values or {}).get(name)
    return math.nan if value is None else float(value)


def _states(trials: Sequence[Trial]) -> Section:
    counts = Counter(trial.status for trial in trials)
    blocks = [Table("Trials by how they ended", ("status", "trials"), counts.most_common())]
    reasons = Counter((trial.status, trial.reason) for trial in trials if trial.reason)
    if reasons:
        rows = [(reason, status, count) for (status, reason), count in reasons.most_common()]
        blocks.append(Table("Why trials have no score", ("reason", "status", "trials"), rows))
    return Section("How the trials ended", blocks)


# ----------------------------------------------------------------------------------------------------------- intervals


def _kept_intervals(run: str, data: str) -> Intervals:
    """95 % bootstrap interval of each kept checkpoint's score, by trial id."""
    from vbd.evaluation.intervals import bootstrap

    dataset, best = open_dataset(data), storage.join(run, "best")
    if not storage.exists(storage.join(best, "manifest.json")):
        return {}
    found = {}
    for member in read_members(best, dataset):
        if not all(storage.exists(storage.join(folder, OUT_OF_FOLD)) for folder in member.folders):
            continue
        detections = member.out_of_fold()
        seen = {detection.image_id for detection in detections}
        truths = [truth for truth in read_truths(dataset, "train") if truth.image_id in seen]
        interval = bootstrap(detections, truths, seed=0).map_40_findings
        found[member.trial_id] = (interval.low, interval.high)
    return found
