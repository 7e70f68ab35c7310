from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from vbd.config import Candidate, SearchConfig, TrainConfig
from vbd.search.schedule import METRIC, PerFamilyHalving, build_scheduler

SEARCH = SearchConfig(
    preset="test",
    candidates=(
        Candidate(TrainConfig(steps=100), ("A",), (1.0,), (1e-3, 1e-3)),
        Candidate(TrainConfig(detector="efficientdet", variant="d0", steps=100), ("A",), (1.0,), (1e-3, 1e-3)),
    ),
    grace_share=0.25,
    reduction=2,
)


def _trial(name: str, detector: str) -> Any:
    variant = "nano" if detector == "yolox" else "d0"
    return SimpleNamespace(trial_id=name, config={"train": {"detector": detector, "variant": variant, "steps": 100}})


def _report(scheduler: TrialScheduler, trial: Any, score: float) -> str:
    return scheduler.on_trial_result(None, trial, {"step": 25, METRIC: score})


def _scheduler(*trials: Any) -> PerFamilyHalving:
    scheduler = PerFamilyHalving(SEARCH)
    assert scheduler.set_search_properties(METRIC, "max")
    for trial in trials:
        scheduler.on_trial_add(None, trial)
    return scheduler


def test_a_slow_family_is_not_compared_with_a_quick_one() -> None:
    quick, slow = [_trial(f"y{i}", "yolox") for i in range(3)], _trial("e", "efficientdet")
    scheduler = _scheduler(*quick, slow)
    for trial, score in zip(quick, (0.5, 0.6, 0.7), strict=True):
        assert _report(scheduler, trial, score) == TrialScheduler.CONTINUE
    assert _report(scheduler, slow, 0.01) == TrialScheduler.CONTINUE


def test_the_worst_of_its_own_family_is_stopped() -> None:
    trials = [_trial(f"y{i}", "yolox") for i in range(3)]
    scheduler = _scheduler(*trials)
    assert _report(scheduler, trials[0], 0.5) == TrialScheduler.CONTINUE
    assert _report(scheduler, trials[1], 0.6) == TrialScheduler.CONTINUE
    assert _report(scheduler, trials[2], 0.1) == TrialScheduler.STOP


def test_nobody_is_stopped_before_its_share_of_the_steps() -> None:
    trials = [_trial(f"y{i}", "yolox") for i in range(2)]
    scheduler = _scheduler(*trials)
    for trial, score in zip(trials, (0.9, 0.0), strict=True):
        assert scheduler.on_trial_result(None, trial, {"step": 24, METRIC: score}) == TrialScheduler.CONTINUE


def test_fifo_stops_nobody() -> None:
    from dataclasses import replace

    assert type(build_scheduler(replace(SEARCH, scheduler="fifo"))) is FIFOScheduler
