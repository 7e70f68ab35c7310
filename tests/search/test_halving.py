import heapq
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vbd.config import TrainConfig, config_hash
from vbd.errors import InputError
from vbd.evaluation.score import SCORE
from vbd.records import Trial
from vbd.search.kept.trial import trial_id_of
from vbd.search.stop.halving import Rungs, milestones


def _rungs(reduction: int = 3) -> Rungs:
    """Milestones at 10, 30 and 90 of 100."""
    return Rungs(100, 0.1, reduction)


def _trial(seed: int, *reports: tuple[int, float | None], status: str = "running") -> Trial:
    config = TrainConfig(steps=100, seed=seed)
    history: list[dict[str, Any]] = [{"step": step, SCORE: score} for step, score in reports]
    return Trial(trial_id_of(config), config, config_hash(config), math.nan, 0, "", status=status, history=history)


def test_milestones_begin_with_the_grace_and_end_below_the_last_step() -> None:
    assert milestones(900, 1 / 9, 3) == (100, 300)
    assert milestones(600, 0.25, 2) == (150, 300)
    assert milestones(10, 0.001, 2) == (1, 2, 4, 8)
    assert milestones(10, 1.0, 2) == ()
    with pytest.raises(InputError, match="reduction is 1"):
        milestones(10, 0.1, 1)


def test_nobody_is_judged_before_the_first_milestone() -> None:
    rungs = _rungs()
    assert rungs.record("a", 10, 0.9).go_on
    assert rungs.record("b", 9, 0.0).go_on
    assert not rungs.record("b", 10, 0.0).go_on


def test_the_first_goes_on_and_then_who_is_in_the_best_third() -> None:
    rungs = _rungs()
    scores = {"a": 0.1, "b": 0.2, "c": 0.05, "d": 0.15, "e": 0.12}
    # Places: 1 of 1, 1 of 2, 1 of 3, 2 of 4, 2 of 5.
    assert [rungs.record(name, 10, score).go_on for name, score in scores.items()] == [True, True, False, True, False]


def test_equal_scores_go_on_together_and_no_score_is_the_worst() -> None:
    rungs = _rungs()
    assert all(rungs.record(name, 10, 0.3).go_on for name in "abcd")
    assert not rungs.record("nan", 10, math.nan).go_on
    assert not rungs.record("none", 10, None).go_on
    empty = _rungs()  # a fold without findings: nothing to choose by
    assert all(empty.record(name, 10, math.nan).go_on for name in "abcd")


def test_the_reason_names_the_score_the_step_the_cut_and_the_places() -> None:
    rungs = _rungs(reduction=2)
    for name, score in {"a": 0.2, "b": 0.3, "c": 0.25, "d": 0.1}.items():
        rungs.record(name, 12, score)
    reason = "halving: 0.1200 at step 11 is below the cut of 0.2000 (3 of 5 go on)"
    assert rungs.record("e", 11, 0.12).reason == reason
    assert "halving: no score at step 10" in rungs.record("f", 10, math.nan).reason


def test_a_score_counts_for_the_last_milestone_it_has_passed_and_only_once() -> None:
    rungs = _rungs()
    rungs.record("late", 35, 0.5)  # its first report: what it had at 10 is not known
    assert rungs.record("b", 10, 0.1).go_on
    assert not rungs.record("b", 30, 0.2).go_on
    rungs.record("late", 40, 0.01)
    assert not rungs.record("c", 30, 0.45).go_on  # the 0.5 stands


def test_who_falls_out_of_the_best_later_is_stopped_at_the_next_report() -> None:
    rungs = _rungs()
    assert rungs.record("a", 10, 0.1).go_on
    assert rungs.record("a", 15, 0.2).go_on
    assert rungs.record("b", 10, 0.3).go_on
    verdict = rungs.record("a", 20, 0.9)  # what it has by now is compared with nothing
    assert not verdict.go_on
    assert "0.1000 at step 10" in verdict.reason
    assert rungs.record("b", 20, 0.0).go_on


def test_a_new_milestone_does_not_hide_that_a_trial_fell_out_at_the_last() -> None:
    rungs = _rungs()
    rungs.record("a", 10, 0.1)
    rungs.record("b", 10, 0.3)
    assert "at step 10" in rungs.record("a", 30, 0.9).reason


def test_trials_of_an_earlier_session_count_whatever_became_of_them() -> None:
    rungs = _rungs()
    rungs.preload(_trial(0, (10, 0.4), (20, 0.45), (30, 0.5), (90, 0.6), (100, 0.7), status="finished"))
    rungs.preload(_trial(1, (10, 0.1), status="stopped"))
    rungs.preload(_trial(2, (10, None), (20, 0.9), status="failed"))
    assert rungs.record("a", 10, 0.35).go_on  # the second of four
    assert "(2 of 5 go on)" in rungs.record("b", 10, 0.3).reason
    assert not rungs.record("c", 30, 0.49).go_on
    assert not rungs.record("d", 90, 0.59).go_on


def test_one_cut_off_at_a_milestone_before_it_was_judged_is_judged_at_its_next_report() -> None:
    good, cut_off = _trial(0, (10, 0.4), status="finished"), _trial(1, (10, 0.1))
    rungs = _rungs()
    rungs.preload(good)
    rungs.preload(cut_off)
    verdict = rungs.record(cut_off.trial_id, 20, 0.5)
    assert verdict.reason == "halving: 0.1000 at step 10 is below the cut of 0.4000 (1 of 2 go on)"
    unjudged = _rungs()
    unjudged.preload(good)
    unjudged.preload(replace(cut_off, history=[{"step": 9, SCORE: 0.1}]))
    assert unjudged.record(cut_off.trial_id, 10, 0.5).go_on


def test_an_attempt_that_repeats_its_reports_is_counted_once() -> None:
    rungs = _rungs()
    for _ in range(5):
        assert rungs.record("a", 10, 0.3).go_on
    assert not rungs.record("b", 10, 0.2).go_on


# ------------------------------------------------------------------------------------------- is judging again worth it?


def _curves(rng: np.random.Generator, trials: int, reports: int) -> NDArray[np.float64]:
    """Scores (trials, reports) that rise at different speeds to different heights, with noise that lasts a while."""
    height = np.clip(rng.normal(0.35, 0.1, (trials, 1)), 0.02, None)
    speed = np.exp(rng.normal(np.log(0.25), 0.4, (trials, 1)))
    share = np.arange(1, reports + 1) / reports
    noise = rng.normal(0, 0.015, (trials, reports))
    for report in range(1, reports):
        noise[:, report] = 0.6 * noise[:, report - 1] + 0.8 * noise[:, report]
    return height * (1 - np.exp(-share / speed)) / (1 - np.exp(-1 / speed)) + noise


def _search(
    curves: NDArray[np.float64], rng: np.random.Generator, *, again: bool, reduction: int
) -> tuple[float, float]:
    """The share of the grid's steps that halving takes on 8 devices, and by how much it misses the grid's best."""
    trials, reports = curves.shape
    rungs, at = Rungs(reports, 1 / 9, reduction), milestones(reports, 1 / 9, reduction)
    seconds = np.exp(rng.normal(0, 0.1, trials))
    best, used = np.full(trials, -np.inf), 0
    running = [(seconds[trial], trial, 1) for trial in range(8)]
    heapq.heapify(running)
    waiting = iter(range(8, trials))
    while running:
        now, trial, report = heapq.heappop(running)
        used += 1
        score = float(curves[trial, report - 1])
        best[trial] = max(best[trial], score)
        judged = again or report in at  # told of nothing but its milestones, a trial is judged once at each
        goes_on = not judged or rungs.record(str(trial), report, score).go_on
        if report < reports and goes_on:
            heapq.heappush(running, (now + seconds[trial], trial, report + 1))
        elif (following := next(waiting, None)) is not None:
            heapq.heappush(running, (now + seconds[following], following, 1))
    return used / curves.size, float(curves.max() - best.max())


def _mean_of_searches(*, again: bool, reduction: int) -> tuple[float, float]:
    rngs = [np.random.default_rng(seed) for seed in range(150)]
    found = [_search(_curves(rng, 24, 18), rng, again=again, reduction=reduction) for rng in rngs]
    used, missed = np.mean(found, axis=0)
    return float(used), float(missed)


def test_judging_again_takes_fewer_steps_and_at_equal_steps_misses_the_best_by_less() -> None:
    assert _mean_of_searches(again=True, reduction=3)[0] < 0.85 * _mean_of_searches(again=False, reduction=3)[0]
    used, missed = _mean_of_searches(again=True, reduction=2)
    used_once, missed_once = _mean_of_searches(again=False, reduction=4)  # a sterner cut takes as few steps
    assert used < 1.02 * used_once
    assert missed < 0.8 * missed_once
