import dataclasses
import math
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from vbd.config import Candidate, SearchConfig, TrainConfig, config_hash
from vbd.evaluation.score import SCORE
from vbd.records import Trial
from vbd.search.kept.trial import trial_id_of
from vbd.search.stop.schedule import PerFamilyHalving, build_scheduler

YOLOX = TrainConfig(steps=100)
EFFICIENTDET = TrainConfig(detector="efficientdet", variant="d0", steps=100)
SEARCH = SearchConfig(
    preset="test", candidates=(Candidate(YOLOX), Candidate(EFFICIENTDET)), grace_share=0.25, reduction=2
)
GO_ON, STOP = TrialScheduler.CONTINUE, TrialScheduler.STOP


class Halving:
    """The scheduler as Tune would use it, and what it told of those it stopped."""

    def __init__(self, *known: Trial):
        self.stopped: list[tuple[str, str]] = []
        self.scheduler = build_scheduler(
            SEARCH, known, on_stop=lambda trial, reason: self.stopped.append((trial.trial_id, reason))
        )

    def report(self, config: TrainConfig, score: float, *, step: int = 25, **more: Any) -> str:
        values = {"config": dataclasses.asdict(config), "until": config.steps, "hold": 0, "number": 0}
        trial = SimpleNamespace(trial_id=f"tune-{config.seed}", config={"proposal": values})
        return self.scheduler.on_trial_result(None, trial, {"step": step, SCORE: score, **more})


def _seeds(config: TrainConfig, count: int) -> list[TrainConfig]:
    return [dataclasses.replace(config, seed=seed) for seed in range(count)]


def test_a_slow_family_is_not_compared_with_a_quick_one() -> None:
    halving = Halving()
    for config, score in zip(_seeds(YOLOX, 3), (0.5, 0.6, 0.7), strict=True):
        assert halving.report(config, score) == GO_ON
    assert halving.report(EFFICIENTDET, 0.01) == GO_ON


def test_nor_a_long_run_with_a_short_one_whose_rate_has_fallen() -> None:
    halving = Halving()
    assert halving.report(YOLOX, 0.5, step=50) == GO_ON
    assert halving.report(dataclasses.replace(YOLOX, steps=200), 0.1, step=50) == GO_ON
    assert halving.report(dataclasses.replace(YOLOX, seed=1), 0.1, step=50) == STOP


def test_the_worst_of_its_own_family_is_stopped_and_told_of_first() -> None:
    halving = Halving()
    first, second, third = _seeds(YOLOX, 3)
    assert halving.report(first, 0.5) == GO_ON
    assert halving.report(second, 0.6) == GO_ON
    assert halving.report(third, 0.1) == STOP
    assert halving.stopped == [
        ("tune-2", "halving: 0.1000 at step 25 is below the cut of 0.5000 (2 of 3 go on)"),
    ]


def test_nobody_is_stopped_before_its_share_of_the_steps_or_at_the_last() -> None:
    halving = Halving()
    first, second = _seeds(YOLOX, 2)
    for step in (24, 100):
        assert halving.report(first, 0.9, step=step) == GO_ON
        assert halving.report(second, 0.0, step=step) == GO_ON
    assert not halving.stopped


def test_what_a_trial_says_as_it_fails_is_no_score() -> None:
    halving = Halving()
    first, second, third = _seeds(YOLOX, 3)
    halving.report(first, 0.5)
    assert halving.report(second, math.nan, step=30, failed="the loss is no number") == GO_ON
    assert halving.scheduler.on_trial_result(None, None, {SCORE: math.nan, "fault": "no dataset"}) == GO_ON
    assert halving.report(third, 0.1) == STOP
    assert "(1 of 2 go on)" in halving.stopped[0][1]


def test_trials_of_an_earlier_session_are_compared_with() -> None:
    config = dataclasses.replace(YOLOX, seed=7)
    history = [{"step": 25, SCORE: 0.5}, {"step": 100, SCORE: 0.8}]
    known = Trial(trial_id_of(config), config, config_hash(config), 0.8, 100, "", history=history)
    halving = Halving(known)
    assert halving.report(YOLOX, 0.4) == STOP
    assert halving.report(EFFICIENTDET, 0.4) == GO_ON


def test_fifo_and_a_population_stop_nobody() -> None:
    for scheduler in ("fifo", "population"):
        search = dataclasses.replace(SEARCH, scheduler=scheduler)
        assert type(build_scheduler(search, [], on_stop=lambda *_: None)) is FIFOScheduler
    assert issubclass(PerFamilyHalving, FIFOScheduler)  # first come, first served
