"""What early stopping saves of a search: the rest of it is simulated, with the scheduler's own rungs and made-up scores.

At a rung only the order of scores counts, so scores have no unit here: each trial has a quality drawn from a normal
distribution, or the place that its reports have among those at its last rung, and each report deviates from it.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vbd.config import SearchConfig, TrainConfig
from vbd.records import Trial
from vbd.search.stop.halving import RungsOfAll

# Standard deviation of a report around the trial's quality, whose deviation is 1: curves cross. From 0.2 to 0.7 the errors in
# tests/search/test_simulation.py are the same.
_NOISE = 0.5
# Standard deviation of the logarithm of a trial's speed: who reports first decides who is stopped first.
_JITTER = 0.1
# Reports in all simulations of a search together, and how many simulations there are at least and at most.
_REPORTS, _LEAST, _MOST = 10_000, 1, 16


@dataclass(frozen=True)
class Rest:
    """What is left of a trial: from step `done` on, with seconds of a step, of a validation and to start."""

    trial_id: str
    config: TrainConfig
    done: int
    step: float
    validation: float
    start: float

    @property
    def reports(self) -> int:
        """How many reports are to come."""
        return math.ceil(self.config.steps / self.config.report_every) - self.done // self.config.report_every

    @property
    def seconds(self) -> float:
        """Seconds when it is not stopped early."""
        return self.start + (self.config.steps - self.done) * self.step + self.reports * self.validation

    def seconds_to(self, first: int, last: int) -> float:
        """Seconds from a step to the report at another, which is the next."""
        return (last - first) * self.step + self.validation + (self.start if first == self.done else 0)


def simulated(rest: Sequence[Rest], known: Sequence[Trial], search: SearchConfig, *, slots: int) -> tuple[float, float]:
    """Mean of simulated searches: seconds of all trials together, and seconds until the last has ended on `slots` devices.

    `rest` are the trials with steps left, in the order in which they start; `known` have reported something already.
    """
    rest = [one for one in rest if one.done < one.config.steps]  # others have reported for the last time, and end now
    reports = sum(one.reports for one in rest)
    if not reports:
        return 0.0, 0.0
    rungs = RungsOfAll(search, known)
    count = min(_MOST, max(_LEAST, _REPORTS // reports))
    found = [_simulated(rest, rungs.by_place(), np.random.default_rng(seed), slots=slots) for seed in range(count)]
    used, took = np.mean(found, axis=0)
    return float(used), float(took)


def _simulated(rest: Sequence[Rest], rungs: RungsOfAll, rng: np.random.Generator, *, slots: int) -> tuple[float, float]:
    """One simulated search."""
    drawn = rng.normal(size=len(rest))
    qualities = [rungs.of(one.config).last_score(one.trial_id, drawn[i]) for i, one in enumerate(rest)]
    slower = np.exp(rng.normal(0, _JITTER, len(rest)))
    noise = iter(rng.normal(0, _NOISE, sum(one.reports for one in rest)))
    used = now = 0.0
    running: list[tuple[float, int, int]] = []  # when it reports, which, at which step

    def begin(number: int, first: int) -> float:
        one = rest[number]
        step = min(one.config.steps, (first // one.config.report_every + 1) * one.config.report_every)
        seconds = one.seconds_to(first, step) * slower[number]
        heapq.heappush(running, (now + seconds, number, step))
        return seconds

    waiting = iter(range(len(rest)))
    for number in [next(waiting, None) for _ in range(slots)]:
        used += begin(number, rest[number].done) if number is not None else 0
    while running:
        now, number, step = heapq.heappop(running)
        one = rest[number]
        goes_on = rungs.of(one.config).record(one.trial_id, step, qualities[number] + next(noise)).go_on
        if goes_on and step < one.config.steps:
            used += begin(number, step)
        elif (following := next(waiting, None)) is not None:
            used += begin(following, rest[following].done)
    return used, now
