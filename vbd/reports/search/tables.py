"""The tables of a search's report: the leaderboard, how the trials ended, and the ensemble of the best."""

import math
from collections import Counter
from collections.abc import Sequence

from vbd import storage
from vbd.console.words import in_time
from vbd.ensemble.recipe import FILE, GainRow, ScoresRow, read_ensemble
from vbd.evaluation.score import score_name
from vbd.records import Trial
from vbd.reports.page import Cell, Section, Table
from vbd.reports.search.figures import Intervals, rate_in_words, strength_in_words
from vbd.search.kept.leaderboard import is_scored

_MAX_ROWS = 100
_FINDINGS = "map_40_findings"
_MAX_REASONS = 50
_REASON_LETTERS = 50
_COLUMNS = (
    *("detector", "variant", "policy", "strength", "image size", "learning rate", "best step"),
    *("time", "host", "status"),
)


def leaderboard(trials: Sequence[Trial], intervals: Intervals) -> Section:
    """The trials best first; of many, the best."""
    shown = trials[:_MAX_ROWS]
    name = score_name(trial.config.detector for trial in trials)
    score = f"{name} (95 % interval)" if intervals else name
    rows = [[trial.trial_id, _scored(trial, intervals), *_cells(trial)] for trial in shown]
    some = "All trials" if len(shown) == len(trials) else f"The best {len(shown)} of {len(trials):,} trials"
    notes = ["A trial is named by its configuration: the same name is the same configuration, in any search."]
    if intervals:
        missing = sum(is_scored(trial) and trial.trial_id not in intervals for trial in shown)
        notes.append(
            "Intervals are bootstrap intervals over the validation fold's images, of the best checkpoint of a trial"
            + (f"; {missing} trials with a score were not measured." if missing else ".")
        )
    return Section("Leaderboard", [Table(f"{some}, best first", ("trial", score, *_COLUMNS), rows), *notes])


def _scored(trial: Trial, intervals: Intervals) -> Cell:
    if not is_scored(trial):
        return math.nan
    low, high = intervals.get(trial.trial_id, (math.nan, math.nan))
    return trial.score if math.isnan(low) else f"{trial.score:.3f} ({low:.3f} to {high:.3f})"


def _cells(trial: Trial) -> list[Cell]:
    config = trial.config
    return [
        config.detector,
        config.variant,
        config.policy,
        strength_in_words(config),
        str(config.image_size),
        rate_in_words(config),
        f"{trial.steps:,}/{config.steps:,}",
        in_time(trial.seconds) if trial.seconds else "-",
        # A wide table breaks lines at every hyphen, of which the names of cloud machines have many: these do not break.
        trial.host.replace("-", "\N{NON-BREAKING HYPHEN}") or "-",
        _status(trial),
    ]


def _status(trial: Trial) -> str:
    """How the trial ended and why; in whole the reason stands in its trial.json."""
    reason = _kind_of_reason(trial)
    cut = reason if len(reason) <= _REASON_LETTERS else f"{reason[: _REASON_LETTERS - 1]}…"
    return f"{trial.status}: {cut}" if cut else trial.status


def states(trials: Sequence[Trial]) -> Section:
    """How many trials ended how, and why."""
    counts = Counter(trial.status for trial in trials)
    blocks: list[str | Table] = [Table("Trials by how they ended", ("status", "trials"), counts.most_common())]
    reasons = Counter((trial.status, _kind_of_reason(trial)) for trial in trials if trial.reason)
    if reasons:
        told = reasons.most_common(_MAX_REASONS)
        rows = [(reason, status, count) for (status, reason), count in told]
        blocks.append(Table("Why trials did not run to their end", ("reason", "status", "trials"), rows))
        if len(told) < len(reasons):
            blocks.append(f"And {len(reasons) - len(told):,} more reasons.")
    return Section("How the trials ended", blocks)


def _kind_of_reason(trial: Trial) -> str:
    """Trials that were stopped early each fell behind by another score: what stopped them is one reason."""
    return trial.reason.partition(":")[0] if trial.status == "stopped" else trial.reason


def ensemble(run: str) -> list[Section]:
    """What `ensemble.json` says, when the kept checkpoints were already fused; a field it lacks is left out.

    Raises InputError for that of another version.
    """
    if not storage.exists(storage.join(run, FILE)):
        return []
    content = read_ensemble(run)
    weights: dict[str, float] = content.recipe.weights if content.recipe else {}
    singles, test, none = content.single_scores, content.test, ScoresRow()
    rows: list[tuple[Cell, ...]] = [
        (
            name,
            weights.get(name, math.nan),
            singles[name],
            test.get(name, none).map_40_findings,
            test.get(name, none).map_40,
        )
        for name in sorted(singles, key=lambda name: -(0 if math.isnan(singles[name]) else singles[name]))
    ]
    fused = test.get("ensemble", none)
    rows.append(("ensemble", 1.0, content.out_of_fold.map_40_findings, fused.map_40_findings, fused.map_40))
    columns = ("model", "weight", f"{_FINDINGS} out of fold", f"{_FINDINGS} test", "map_40 test")
    blocks: list[str | Table] = [_gain(content.gain), Table("The ensemble and its members", columns, rows)]
    if "ensemble" in test:
        names = list(test)
        classes: list[tuple[Cell, ...]] = [
            (c, *(test[name].per_class.get(c, math.nan) for name in names)) for c in fused.per_class
        ]
        blocks.append(Table("Average precision of each class on the test part", ("class", *names), classes))
    return [Section("Ensemble", [block for block in blocks if block])]


def _gain(gain: GainRow) -> str:
    if not gain.verdict:
        return ""
    meaning = {
        "ensemble": "the ensemble is better",
        "undecided": "which of the two is better cannot be told",
        "single": "the single model is used alone",
    }
    interval = gain.interval
    return (
        f"On images that nothing was chosen on, the ensemble reaches {_FINDINGS} {gain.fused:.3f} and the best single "
        f"model {gain.single:.3f}: a gain of {interval.estimate:.3f} (95 % interval "
        f"{interval.low:.3f} to {interval.high:.3f}); {meaning.get(gain.verdict, gain.verdict)}."
    )
