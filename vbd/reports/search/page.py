"""The report of a search: what was tried, what won, and what cannot be told from it."""

import math
import time
from collections import Counter
from collections.abc import Sequence

from vbd import storage
from vbd.evaluation.score import score_name
from vbd.records import Trial
from vbd.reports.page import Section, write_page
from vbd.reports.search.arms import Compared, Found, Study, compare_arms, redraw, study_of
from vbd.reports.search.budgets import budgets
from vbd.reports.search.cost import cost
from vbd.reports.search.devices import devices
from vbd.reports.search.figures import Intervals, curves, described, families, strengths
from vbd.reports.search.importance import importance
from vbd.reports.search.measure import Measured, class_map, measure_trials
from vbd.reports.search.parallel import parallel
from vbd.reports.search.pictures import picture_sections
from vbd.reports.search.read import SearchRun, read_search
from vbd.reports.search.study import study_section
from vbd.reports.search.study_text import in_words
from vbd.reports.search.tables import ensemble, leaderboard, states
from vbd.search.kept.leaderboard import is_scored


def write_search_report(run: str, output: str, *, data: str | None = None) -> None:
    """Writes what a search found as one HTML page that works offline; the search may still run, or have been killed.

    With the dataset's folder in `data`, the kept detections give intervals, the classes that each trial finds, and
    pictures. Raises InputError when the folder holds no search, or one on another dataset.
    """
    search = read_search(run, data)
    board = search.board
    measured = measure_trials(board.trials, search.dataset) if search.dataset else {}
    title = "What the search found" if not search.unfinished else "What the search has found so far (unfinished)"
    subtitle = f"{storage.shown(run)}: preset {board.preset}, {len(board.trials)} trials on dataset {board.dataset}"
    write_page(output, title, _sections(search, measured), synthetic=board.synthetic, subtitle=subtitle)


def _sections(search: SearchRun, measured: dict[str, Measured]) -> list[Section]:
    trials = search.board.trials
    intervals: Intervals = {trial_id: item.interval for trial_id, item in measured.items()}
    studies = [study_of(family, trials) for family in families(trials)]
    redrawn = redraw(studies, search.dataset) if search.dataset else {}
    compared = [(study, compare_arms(study.cells, redrawn)) for study in studies]
    return [
        _short(search, measured, compared),
        *study_section(compared),
        *budgets(studies, redrawn),
        leaderboard(trials, intervals),
        *ensemble(search.location),
        *strengths(_without_arms(trials, compared), intervals),
        *importance(trials),
        parallel(trials),
        curves(trials),
        *class_map(measured, num_scored=sum(map(is_scored, trials))),
        *(picture_sections(trials, search.dataset) if search.dataset else []),
        devices(trials),
        *cost(search.location, trials, is_over=not search.unfinished),
        states(trials),
    ]


def _without_arms(trials: Sequence[Trial], compared: Sequence[tuple[Study, Found]]) -> list[Trial]:
    """Trials of the families whose arms could not be compared."""
    told = {study.family for study, found in compared if isinstance(found, Compared)}
    return [trial for trial in trials if trial.config.detector not in told]


def _short(search: SearchRun, measured: dict[str, Measured], compared: Sequence[tuple[Study, Found]]) -> Section:
    """The answers, and what stands in the way of others."""
    trials = search.board.trials
    lines = [_state(search)] if search.unfinished else []
    scored = [trial for trial in trials if is_scored(trial)]
    if not scored:
        lines.append(f"No trial {'has' if search.unfinished else 'ended with'} a score; the reasons stand below.")
        return Section("In short", [*lines, _counted(trials)])
    lines += [_best(scored[0], measured), *_families(scored)]
    lines += [in_words(study, found, has_images=search.dataset is not None) for study, found in compared]
    lines += [_counted(trials), _caveat(search, measured)]
    return Section("In short", lines)


def _state(search: SearchRun) -> str:
    stamps = [item.get("timestamp") or 0 for trial in search.board.trials for item in trial.history]
    last = f" The last report came at {_utc(max(stamps))}." if any(stamps) else ""
    return f"This search is unfinished: {search.unfinished}. Everything below may change.{last}"


def _utc(timestamp: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(timestamp))


def _best(best: Trial, measured: dict[str, Measured]) -> str:
    item = measured.get(best.trial_id)
    low, high = item.interval if item else (math.nan, math.nan)
    interval = "" if math.isnan(low) else f" (95 % interval {low:.3f} to {high:.3f})"
    return (
        f"The best single model is trial {best.trial_id}: {described(best.config)}, "
        f"{score_name([best.config.detector])} {best.score:.3f}{interval} on fold {best.config.fold} after {best.steps:,} steps."
    )


def _families(scored: Sequence[Trial]) -> list[str]:
    """The best of each of several families, in one line."""
    best = {family: next(t for t in scored if t.config.detector == family) for family in families(scored)}
    if len(best) < 2:
        return []
    ordered = sorted(best.items(), key=lambda pair: -pair[1].score)
    return ["By detector the best are " + ", ".join(f"{name} {trial.score:.3f}" for name, trial in ordered) + "."]


def _counted(trials: Sequence[Trial]) -> str:
    """How many trials there were, by status."""
    if not trials:
        return "The search has no trial yet."
    counts = ", ".join(f"{count} {status}" for status, count in Counter(trial.status for trial in trials).most_common())
    return f"{len(trials):,} trial{'' if len(trials) == 1 else 's'}: {counts}."


def _caveat(search: SearchRun, measured: dict[str, Measured]) -> str:
    text = "Each score is of one validation fold, on which the trials were also compared, so the best one is flattered."
    if search.dataset is None:
        return (
            f"{text} Intervals, the scores of each class and pictures need the truth, and are left out: give the "
            "prepared dataset with --data to have them."
        )
    if not measured:
        return f"{text} No trial's detections are kept, so that there are no intervals, scores of classes or pictures."
    return text
