"""What a search takes: device-hours, time and money, before it starts, while it runs, and against what it took at last."""

import dataclasses
import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from vbd import storage
from vbd.config import SearchConfig, TrainConfig, checked, config_hash, finds_boxes
from vbd.config.checked import Count, Seconds, between
from vbd.console.words import in_hours, in_time
from vbd.records import Trial
from vbd.search.cost.rates import (
    Combination,
    Measured,
    Rate,
    RateRow,
    Rates,
    attempts_of,
    combination_of,
    final_problem,
    rate_of,
    rates_of,
    rates_of_rows,
    rates_to_json,
)
from vbd.search.cost.simulation import Rest, simulated
from vbd.search.kept.trial import trial_id_of

SCHEMA = 1
_OPEN = ("running", "waiting", "died", "unfinished")  # states of a trial that has steps left


@dataclass(frozen=True)
class Devices:
    """What trials run on: a trial holds `per_trial` of the `count` devices of the cluster, which may yet have to come."""

    kind: str  # GPU or CPU
    count: Seconds
    per_trial: Annotated[float, between(0, 1e6, above=True)]
    grows: bool = False  # whether `count` is what the cluster may grow to

    @property
    def slots(self) -> int:
        """Trials at a time; at least one, of a cluster that has yet to grow."""
        return max(1, int(self.count / self.per_trial + 1e-9))

    def hours(self, seconds: float) -> float:
        """Device-hours of a trial that takes some seconds."""
        return seconds * self.per_trial / 3600


@dataclass(frozen=True)
class Forecast:
    """Device-hours of the whole search, what is spent included, and the time left; NaN when no rate is known."""

    trials: Count
    combinations: Count
    measured: Count  # of the combinations; the others are estimated
    spent: Measured  # device-hours
    at_most: Measured  # device-hours when no trial is stopped
    expected: Measured  # device-hours with the trials stopped that halving is expected to stop
    seconds_left_at_most: Measured
    seconds_left: Measured
    devices: Devices
    price: Seconds | None = None  # of a device-hour
    problems: tuple[str, ...] = ()  # combinations that could not be measured, and why

    @property
    def is_known(self) -> bool:
        """Whether there was a rate to count with."""
        return math.isfinite(self.at_most)


@dataclass(frozen=True)
class Actual:
    """What a search has taken."""

    device_hours: Measured
    seconds: Measured  # in which at least one trial ran
    busy_share: Measured  # of the devices in that time; NaN when nothing ran, or the cluster grew
    price: Seconds | None = None


@dataclass(frozen=True)
class _File:
    before: Forecast
    rates: tuple[RateRow, ...]
    actual: Actual | None


@dataclass(frozen=True)
class Record:
    """What forecast.json of a run folder holds."""

    before: Forecast
    rates: dict[Combination, Rate]
    actual: Actual | None = None


def forecast(
    configs: Sequence[TrainConfig],
    trials: Sequence[Trial],
    rates: Rates,
    *,
    search: SearchConfig,
    devices: Devices,
    price: float | None = None,
) -> Forecast:
    """The forecast of a search that plans `configs` (see `Proposer.planned`), some of which have become `trials`.

    Rates measured by the trials replace `rates`. For a search that draws as it goes, some `configs` are placeholders: a
    trial replaces one of its combination, of its family, or of those that Optuna gives fewer trials for it.
    """
    rates = dict(rates) | rates_of(trials)
    unbegun = _unbegun(configs, trials, search)
    spent = sum(map(occupied_seconds, trials))
    begun = [_rest(trial.config, rates, done=_steps_done(trial)) for trial in trials if trial.status in _OPEN]
    rest = [one for one in (*begun, *(_rest(config, rates) for config in unbegun)) if one is not None]
    most = [one.seconds for one in rest]
    left_at_most, time_at_most = sum(most), _makespan(most, devices.slots)
    left, time_left = left_at_most, time_at_most
    if search.scheduler == "halving" and math.isfinite(left_at_most):
        left, time_left = simulated(rest, trials, search, slots=devices.slots)
    combinations = {combination_of(config) for config in [*(trial.config for trial in trials), *unbegun]}
    return Forecast(
        trials=len(trials) + len(unbegun),
        combinations=len(combinations),
        measured=sum(rates[one].is_known for one in combinations if one in rates),
        spent=devices.hours(spent),
        at_most=devices.hours(spent + left_at_most),
        expected=devices.hours(spent + left),
        seconds_left_at_most=time_at_most,
        seconds_left=time_left,
        devices=devices,
        price=price,
        problems=tuple(
            f"{one}: {rate.problem}{', so its trials fail' if rate.is_final else ''}"
            for one, rate in sorted(rates.items())
            if rate.problem
        ),
    )


def _unbegun(configs: Sequence[TrainConfig], trials: Sequence[Trial], search: SearchConfig) -> list[TrainConfig]:
    """The planned configs without those that trials have taken the place of."""
    open_ones = {config_hash(config): config for config in configs}
    others = []
    for trial in trials:
        if open_ones.pop(config_hash(trial.config), None) is None:
            others.append(trial.config)
    if search.scheduler == "population":
        return list(open_ones.values())  # the others descend from trials and take their remaining steps
    for config in others:
        if (key := _placeholder(config, open_ones, search)) is not None:
            del open_ones[key]
    return list(open_ones.values())


def _placeholder(config: TrainConfig, open_ones: Mapping[str, TrainConfig], search: SearchConfig) -> str | None:
    """The hash of the planned config whose place a trial takes that was not planned."""

    def unlike(key: str) -> tuple[bool, bool]:
        planned = open_ones[key]
        return planned.detector != config.detector, combination_of(planned) != combination_of(config)

    def may_be(planned: TrainConfig) -> bool:
        competes = search.searcher == "optuna" and finds_boxes(planned.detector) == finds_boxes(config.detector)
        return competes or planned.detector == config.detector

    keys = [key for key, planned in open_ones.items() if may_be(planned)]
    return min(keys, key=unlike, default=None)


def _rest(config: TrainConfig, rates: Rates, *, done: int | None = None) -> Rest | None:
    """What is left of a trial from step `done` on (None: it has not begun); None where it cannot be trained at all."""
    if final_problem(config, rates):
        return None
    rate = rate_of(combination_of(config), rates)
    start = rate.start if done is None else 0.0
    return Rest(trial_id_of(config), config, done or 0, rate.step, rate.validation, start)


def _steps_done(trial: Trial) -> int:
    """Of the trial itself; one that descends from another began with that one's last phase."""
    begun = trial.config.phase_steps[-1] if trial.config.phase_steps else 0
    return int(trial.history[-1]["step"]) if trial.history else begun


def occupied_seconds(trial: Trial) -> float:
    """Seconds in which a trial held its devices, all attempts together, each to its last report."""
    attempts = attempts_of(trial)
    return sum(reports[-1]["timestamp"] - reports[-1]["attempt_started"] for reports in attempts) or trial.seconds


def _makespan(durations: Iterable[float], slots: int) -> float:
    """Seconds until all are done when each slot takes the next one as soon as it is free."""
    free = [0.0] * slots
    for seconds in durations:
        heapq.heappushpop(free, free[0] + seconds)
    return max(free)


def actual(trials: Sequence[Trial], *, devices: Devices, price: float | None = None) -> Actual:
    """What the trials have taken; a time in which none ran, as between two sessions, is left out."""
    spans = sorted((of[0]["attempt_started"], of[-1]["timestamp"]) for trial in trials for of in attempts_of(trial))
    together, until = 0.0, -math.inf
    for begin, end in spans:
        together += max(0.0, end - max(begin, until))
        until = max(until, end)
    hours = devices.hours(sum(map(occupied_seconds, trials)))
    capacity = 0.0 if devices.grows else devices.count * together / 3600
    return Actual(hours, together, min(1.0, hours / capacity) if capacity else math.nan, price)


# ---------------------------------------------------------------------------------------------------------- in words


def describe(found: Forecast) -> str:
    """The forecast in one line or two."""
    if not found.is_known:
        lines = [f"forecast: none for {found.trials} trials, as no combination could be measured"]
    else:
        most = f" (at most {in_hours(found.at_most)} if none is stopped)" if found.at_most > found.expected else ""
        devices = found.devices
        lines = [
            f"forecast: {found.trials} trials take about {in_hours(found.expected)} {devices.kind}-hours{most}, "
            f"{in_time(found.seconds_left)} with {'up to ' if devices.grows else ''}{devices.count:g} {devices.kind}(s)"
            + _money_told(found)
        ]
    estimated = found.combinations - found.measured
    notes = [f"{estimated} of {found.combinations} combinations are estimated by their pixels"] if estimated else []
    notes = notes if found.is_known else []
    return "\n".join([*lines, *(["  " + "; ".join([*notes, *found.problems])] if notes or found.problems else [])])


def _money_told(found: Forecast) -> str:
    if found.price is None:
        return ""
    most = f", at most {found.at_most * found.price:.2f}" if found.at_most > found.expected else ""
    return f"; it costs about {found.expected * found.price:.2f}{most}"


def compare(before: Forecast, taken: Actual) -> str:
    """What a search took against what was forecast, in one line."""
    kind = before.devices.kind
    if before.is_known:
        ratio = f" ({taken.device_hours / before.expected:.0%})" if before.expected else ""
        said = f"of about {in_hours(before.expected)} forecast{ratio}"
    else:
        said = "without a forecast"
    busy = "" if math.isnan(taken.busy_share) else f"; the {kind}s were busy for {taken.busy_share:.0%} of it"
    money = "" if taken.price is None else f"; it cost {taken.device_hours * taken.price:.2f}"
    return f"taken: {in_hours(taken.device_hours)} {kind}-hours {said}, in {in_time(taken.seconds)}{busy}{money}"


# ------------------------------------------------------------------------------------------------------ forecast.json


def read_record(run: str) -> Record | None:
    """What forecast.json of a run folder holds; None when there is none. Raises InputError when it is broken."""
    location = storage.join(run, "forecast.json")
    if not storage.exists(location):
        return None
    found = checked.read(location, _File, schema=SCHEMA, again="remove it to measure again")
    return Record(found.before, rates_of_rows(found.rates, where=location), found.actual)


def write_record(run: str, record: Record) -> None:
    """Writes forecast.json of a run folder."""
    content = {
        "schema": SCHEMA,
        "before": dataclasses.asdict(record.before),
        "rates": rates_to_json(record.rates),
        "actual": None if record.actual is None else dataclasses.asdict(record.actual),
    }
    storage.write_json(storage.join(run, "forecast.json"), content)
