"""The forecast of early stopping against simulated searches, in which the scheduler's own rungs judge random learning curves."""

import heapq
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.search.histories import reports, trial_of
from vbd.config import VARIANTS, Family, SearchConfig, TrainConfig
from vbd.search.cost.forecast import Devices, forecast
from vbd.search.cost.rates import Rate, combination_of
from vbd.search.cost.simulation import Rest, simulated
from vbd.search.kept.trial import trial_id_of
from vbd.search.stop.halving import RungsOfAll

FAMILIES: tuple[Family, ...] = ("yolox", "efficientdet", "faster_rcnn", "retinanet")
EVERY, VALIDATION, START = 10, 2.0, 5.0
BASE = TrainConfig(steps=40, report_every=EVERY)
HALVING = SearchConfig("simulated", (), scheduler="halving", grace_share=0.25, reduction=2)


def _curves(rng: np.random.Generator, trials: int, count: int) -> NDArray[np.float64]:
    """Scores (trials, reports) that rise at different speeds to different heights, with noise that lasts a while."""
    height = np.clip(rng.normal(0.35, 0.1, (trials, 1)), 0.02, None)
    speed = np.exp(rng.normal(np.log(0.25), 0.4, (trials, 1)))
    share = np.arange(1, count + 1) / count
    noise = rng.normal(0, 0.015, (trials, count))
    for report in range(1, count):
        noise[:, report] = 0.6 * noise[:, report - 1] + 0.8 * noise[:, report]
    return height * (1 - np.exp(-share / speed)) / (1 - np.exp(-1 / speed)) + noise


@dataclass(frozen=True)
class _Searched:
    """A simulated search: its trials in order, seconds of a step by config, and what it took."""

    search: SearchConfig
    configs: list[TrainConfig]
    step: dict[Family, float]
    slots: int
    used: float = 0.0
    took: float = 0.0


def _drawn(rng: np.random.Generator) -> _Searched:
    """The size of a search: from 2 to 24 trials of one to four families."""
    families, each = FAMILIES[: rng.integers(1, 5)], int(rng.choice([2, 4, 6, 12, 24]))
    steps = EVERY * int(rng.choice([4, 6, 9, 10, 18, 20]))
    search = replace(HALVING, grace_share=float(rng.choice([1 / 9, 0.25, 0.1, 0.2])), reduction=int(rng.integers(2, 5)))
    configs = [
        replace(BASE, detector=family, variant=VARIANTS[family][0], steps=steps, seed=seed)
        for seed in range(each)
        for family in families
    ]
    step = {family: math.exp(rng.normal(0, 0.7)) for family in families}
    return _Searched(search, configs, step, slots=int(rng.choice([1, 2, 4, 8, 16])))


def _searched(seed: int) -> _Searched:
    """A search of random size with random learning curves, judged by the scheduler's rungs."""
    rng = np.random.default_rng(seed)
    plan = _drawn(rng)
    configs, count = plan.configs, plan.configs[0].steps // EVERY
    curves, rungs = _curves(rng, len(configs), count), RungsOfAll(plan.search)
    seconds = [EVERY * plan.step[c.detector] * math.exp(rng.normal(0, 0.1)) + VALIDATION for c in configs]
    waiting: Iterator[int] = iter(range(len(configs)))
    running = [(START + seconds[i], i, 1) for i in itertools.islice(waiting, plan.slots)]
    heapq.heapify(running)
    used = START * len(configs)
    now = 0.0
    while running:
        now, i, report = heapq.heappop(running)
        used += seconds[i]
        verdict = rungs.of(configs[i]).record(str(i), report * EVERY, float(curves[i, report - 1]))
        if verdict.go_on and report < count:
            heapq.heappush(running, (now + seconds[i], i, report + 1))
        elif (following := next(waiting, None)) is not None:
            heapq.heappush(running, (now + START + seconds[following], following, 1))
    return replace(plan, used=used, took=now)


def test_the_forecast_is_within_a_tenth_of_sixty_simulated_searches() -> None:
    """On average; a single small search depends on the order in which its trials report, which nobody can foresee."""
    hours, times = [], []
    for seed in range(60):
        plan = _searched(seed)
        rates = {combination_of(config): Rate(plan.step[config.detector], VALIDATION, START) for config in plan.configs}
        found = forecast(plan.configs, [], rates, search=plan.search, devices=Devices("CPU", plan.slots, 1))
        hours.append(found.expected * 3600 / plan.used - 1)
        times.append(found.seconds_left / plan.took - 1)
    assert abs(np.mean(hours)) < 0.05
    assert abs(np.mean(times)) < 0.05
    # Of each one: 0.10 and 0.11, and no less with the true distribution of its curves.
    assert np.mean(np.abs(hours)) < 0.13
    assert np.mean(np.abs(times)) < 0.14


def _rest(config: TrainConfig, done: int = 0) -> Rest:
    return Rest(trial_id_of(config), config, done, 1.0, VALIDATION, 0.0 if done else START)


def test_a_trial_alone_is_trained_to_its_end() -> None:
    whole = START + 40 + 4 * VALIDATION
    used, took = simulated([_rest(BASE)], [], HALVING, slots=2)
    assert used == took
    assert used == pytest.approx(whole, rel=0.1)  # its speed is drawn
    assert _rest(BASE).seconds == whole
    assert _rest(replace(BASE, steps=45), 20).seconds == 25 + 3 * VALIDATION
    assert simulated([], [], HALVING, slots=2) == (0.0, 0.0)


def test_a_trial_that_has_reported_for_the_last_time_takes_nothing_more() -> None:
    assert simulated([_rest(BASE, 40)], [], HALVING, slots=2) == (0.0, 0.0)
    assert simulated([_rest(BASE, 40), _rest(BASE)], [], HALVING, slots=2) == simulated(
        [_rest(BASE)], [], HALVING, slots=2
    )


def test_families_and_other_steps_are_compared_among_themselves() -> None:
    apart = [_rest(BASE), _rest(replace(BASE, detector="fcos", variant="resnet18")), _rest(replace(BASE, steps=80))]
    used, _ = simulated(apart, [], HALVING, slots=1)
    assert used == pytest.approx(sum(one.seconds for one in apart), rel=0.1)


def test_what_is_known_of_a_running_trial_decides_how_far_it_is_expected_to_come() -> None:
    best, worst = replace(BASE, seed=8), replace(BASE, seed=9)
    others = [trial_of(replace(BASE, seed=i), *reports(replace(BASE, seed=i), 40)) for i in range(4)]

    def left(config: TrainConfig, score: float) -> float:
        history = [report | {"score": score} for report in reports(config, 20)]
        trial = trial_of(config, *history, status="running")
        return simulated([_rest(config, 20)], [*others, trial], HALVING, slots=1)[0]

    assert left(best, 0.9) == pytest.approx(20 + 2 * VALIDATION, rel=0.2)
    assert left(worst, 0.0) == pytest.approx(10 + VALIDATION, rel=0.2)  # stopped at its next report


def test_the_same_search_has_the_same_forecast() -> None:
    rest = [_rest(replace(BASE, seed=seed)) for seed in range(8)]
    assert simulated(rest, [], HALVING, slots=2) == simulated(rest, [], HALVING, slots=2)
