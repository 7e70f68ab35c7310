"""What a search takes: device-hours, time and money, before it starts, while it runs, and against what it took at last."""

import dataclasses
import heapq
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from vbd import checked, storage
from vbd.checked import Count, Seconds, between
from vbd.config import SearchConfig, TrainConfig, config_hash
from vbd.records import Trial
from vbd.search.halving import milestones
from vbd.search.rates import (
    Combination,
    Measured,
    Rate,
    RateRow,
    Rates,
    attempts_of,
    combination_of,
    rate_of,
    rates_of,
    rates_of_rows,
    rates_to_json,
)

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
    """The forecast of a search that plans `configs`, some of which have become `trials`.

    What trials themselves have measured goes before `rates`. For a search that draws as it goes, `configs` are draws of
    the same space: a trial takes the place of one of its combination, or of its family.
    """
    rates = dict(rates) | rates_of(trials)
    unbegun = _unbegun(configs, trials, search)
    size_of_family = Counter(config.detector for config in configs)
    spent, begun, coming = 0.0, [], []
    for trial in trials:
        spent += occupied_seconds(trial)
        if trial.status in _OPEN:
            begun.append(_left(trial.config, rates, search, done=_steps_done(trial), family=size_of_family))
    for config in unbegun:
        coming.append(_left(config, rates, search, done=None, family=size_of_family))
    left = [*begun, *coming]
    combinations = {combination_of(config) for config in [*(trial.config for trial in trials), *unbegun]}
    return Forecast(
        trials=len(trials) + len(unbegun),
        combinations=len(combinations),
        measured=sum(rates[one].is_known for one in combinations if one in rates),
        spent=devices.hours(spent),
        at_most=devices.hours(spent + sum(most for most, _ in left)),
        expected=devices.hours(spent + sum(expected for _, expected in left)),
        seconds_left_at_most=_makespan((most for most, _ in left), devices.slots),
        seconds_left=_makespan((expected for _, expected in left), devices.slots),
        devices=devices,
        price=price,
        problems=tuple(f"{one}: {rate.problem}" for one, rate in sorted(rates.items()) if rate.problem),
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
        alike = [key for key, one in open_ones.items() if one.detector == config.detector]
        alike.sort(key=lambda key: combination_of(open_ones[key]) != combination_of(config))
        for key in alike[:1]:
            del open_ones[key]
    return list(open_ones.values())


def _left(
    config: TrainConfig, rates: Rates, search: SearchConfig, *, done: int | None, family: Counter[Any]
) -> tuple[float, float]:
    """Seconds that a trial takes from step `done` on (None: it has not begun): when it is not stopped, and expected."""
    rate = rate_of(combination_of(config), rates)
    start = rate.start if done is None else 0.0
    done = done or 0

    def seconds(first: int, last: int) -> float:
        return (last - first) * rate.step + (_reports(config, last) - _reports(config, first)) * rate.validation

    expected, here, going_on = 0.0, done, 1.0
    for rung, share in rungs_of(config, search, trials=family[config.detector]):
        if rung > done:
            expected += going_on * seconds(here, rung)
            here, going_on = rung, going_on * share
    return start + seconds(done, config.steps), start + expected + going_on * seconds(here, config.steps)


def _reports(config: TrainConfig, step: int) -> int:
    """Reports up to a step, that of the last step included."""
    return step // config.report_every + (step == config.steps and step % config.report_every > 0)


def rungs_of(config: TrainConfig, search: SearchConfig, *, trials: int) -> list[tuple[int, float]]:
    """The steps at which halving looks at a trial of a family of `trials`, and the share that is expected to go on."""
    if search.scheduler != "halving":
        return []
    rungs: list[tuple[int, float]] = []
    arriving = float(trials)
    for milestone in milestones(config.steps, search.grace_share, search.reduction):
        reported = math.ceil(milestone / config.report_every) * config.report_every
        if reported >= config.steps:
            break
        share = share_going_on(arriving, search.reduction)
        rungs.append((reported, share))
        arriving *= share
    return rungs


def share_going_on(arriving: float, reduction: float) -> float:
    """The share of trials, arriving one by one at a rung in random order, that asynchronous halving lets go on.

    The first goes on; one that m others came before goes on when it is not below their (1 - 1 / reduction) quantile, in
    which it succeeds with probability ((m - 1) / reduction + 1) / (m + 1): more than 1 / reduction while m is small.
    """
    count = max(1, round(arriving))
    return (1 + sum(((m - 1) / reduction + 1) / (m + 1) for m in range(1, count))) / count


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


def in_hours(hours: float) -> str:
    """`0.012`, `3.4`, `1,250`: two digits, or whole ones."""
    return f"{hours:,.0f}" if hours >= 10 else f"{float(f'{hours:.2g}'):g}"


def in_time(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 20 min`, `5 d 3 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 72 else f"{hours // 24} d {hours % 24} h"


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
