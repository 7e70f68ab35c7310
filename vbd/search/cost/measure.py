"""Measures how fast each combination of a search trains here: a few steps of the real loop, on what a trial will hold."""

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import ray

from vbd.cluster.nodes import look
from vbd.cluster.placement import remote_args
from vbd.cluster.versions import VersionsError, check_versions
from vbd.config import RunOptions, SearchConfig, TrainConfig
from vbd.data.batches.make import training_batches
from vbd.data.prepared import open_dataset
from vbd.records import Trial
from vbd.search.cost.forecast import Devices, Record, actual, compare, describe, forecast, read_record, write_record
from vbd.search.cost.rates import Combination, Rate, combination_of, no_rate, to_measure
from vbd.search.kept.trial import ENDED, trial_id_of
from vbd.search.tune.handed_over import Workers
from vbd.training.loop import Ranks, TrainingError, TrainingRun
from vbd.training.microbatches import least_images, sides
from vbd.training.recurrence import in_brief, is_repeatable
from vbd.training.validation import detect

_AT_MOST = 12  # combinations; the others are estimated from them
_STEPS, _LOOKS = 8, 3  # at most, of training and of validation batches
_SECONDS = 2.0  # after which a measurement has seen enough
_PATIENCE_SECONDS = 600.0  # for all of it: a cluster may have to grow first

Measure = Callable[..., Rate]


def prepare_forecast(
    run: str,
    search: SearchConfig,
    configs: Sequence[TrainConfig],
    trials: Sequence[Trial],
    *,
    location: str,
    options: RunOptions,
    needs: Workers,
    price: float | None = None,
    renew: bool = False,
    claim: Callable[[], None] = lambda: None,
) -> Record:
    """Measures, forecasts, prints that and writes forecast.json; a run that has one goes on with it, unless to `renew` it.

    `configs` are all that the search plans, `trials` the known ones among them; `needs` are those of a trial. Only
    combinations that have steps left are measured. `claim` is called before anything is written to the run's folder, when
    no more can be refused.
    """
    record = read_record(run)
    if record is None or renew:
        rates = dict(record.rates) if record else {}
        ended = {trial.trial_id for trial in trials if trial.status in ENDED}
        left = [config for config in configs if trial_id_of(config) not in ended]
        # What failed for good is measured again: the run was extended after its cause may have been removed.
        known = {one: rate for one, rate in rates.items() if not rate.is_final}
        rates = known | calibrate(left, location, options, needs, known=known)
        devices = devices_at_most(needs, trials=len(left))
        before = forecast(configs, trials, rates, search=search, devices=devices, price=price)
        record = Record(before, rates)
        claim()
        write_record(run, record)
    else:
        claim()
    print(describe(record.before), flush=True)
    return record


def close_forecast(run: str, trials: Sequence[Trial], *, price: float | None = None) -> str:
    """Writes into forecast.json what the trials took; returns a line that compares it with the forecast, "" without one."""
    record = read_record(run)
    if record is None:
        return ""
    taken = actual(trials, devices=record.before.devices, price=price)
    write_record(run, replace(record, actual=taken))
    return compare(record.before, taken)


def devices_of(needs: Workers) -> Devices:
    """GPUs where trials ask for some, else CPUs; at least enough for one trial, of a cluster that has yet to grow."""
    kind = "GPU" if needs.gpus else "CPU"
    per_trial = needs.each[kind] * needs.number
    return Devices(kind, max(look().total(kind, needs.selector, now=True), per_trial), per_trial)


def devices_at_most(needs: Workers, *, trials: int) -> Devices:
    """Those that so many trials may come to run on: of a cluster that grows, as many as it may have and they have use for."""
    there, cluster = devices_of(needs), look()
    may_be = int(min(cluster.rooms(needs.each, needs.selector) / needs.number, trials)) * there.per_trial
    return replace(there, count=may_be, grows=True) if cluster.grows and may_be > there.count else there


def calibrate(
    configs: Sequence[TrainConfig],
    location: str,
    options: RunOptions,
    needs: Workers,
    *,
    known: Mapping[Combination, Rate] | None = None,
    measured_by: Measure | None = None,
    patience_seconds: float = _PATIENCE_SECONDS,
) -> dict[Combination, Rate]:
    """The rates of some combinations of the configs that are not `known`; one that fails has none, but says why.

    Each is measured by a Ray actor that holds what a worker of a trial holds, as many at a time as there is room for. Raises
    InputError when the node of one has other libraries than the driver: trials would end there too.
    """
    first = {combination_of(config): config for config in reversed(configs)}
    chosen = to_measure([one for one in first if one not in (known or {})], at_most=_AT_MOST)
    if not chosen:
        return {}
    print(f"measuring how fast {len(chosen)} of {len(first)} combinations train here, for some steps each", flush=True)
    # Actors, not tasks: one that hangs can be killed, and its devices are free at once.
    where = remote_args(needs.selector)
    bench = ray.remote(_Bench).options(num_cpus=needs.cpus, num_gpus=needs.gpus, **where)
    benches = {one: bench.remote(measured_by or measure) for one in chosen}
    pending = {benches[one].measure.remote(first[one], location, options, workers=needs.number): one for one in chosen}
    try:
        return _gather(pending, benches, patience_seconds)
    finally:
        for one in benches.values():
            ray.kill(one)


class _Bench:
    """A process of its own for one measurement."""

    def __init__(self, measured_by: Measure):
        self._measured_by = measured_by

    def measure(self, config: TrainConfig, location: str, options: RunOptions, *, workers: int) -> Rate:
        check_versions()
        return self._measured_by(config, location, options, workers=workers)


def _gather(
    pending: dict[Any, Combination], benches: Mapping[Combination, Any], seconds: float
) -> dict[Combination, Rate]:
    """The rates as they come in; what is done makes room for the next."""
    rates: dict[Combination, Rate] = {}
    until = time.monotonic() + seconds
    while pending:
        done, _ = ray.wait(list(pending), timeout=max(0.0, until - time.monotonic()))
        if not done:
            return rates | {one: no_rate(f"not measured within {seconds:.0f} s") for one in pending.values()}
        one = pending.pop(done[0])
        rates[one] = _rate(done[0])
        ray.kill(benches[one])
    return rates


def _rate(done: Any) -> Rate:
    try:
        return ray.get(done)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, VersionsError):
            raise error.cause from None
        if is_repeatable(error.cause) and not isinstance(error.cause, TrainingError):
            return no_rate(in_brief(error.cause), is_final=True)
        return no_rate((str(error.cause).splitlines() or [type(error.cause).__name__])[0])
    except ray.exceptions.OutOfMemoryError:
        return no_rate("out of memory: its process was ended when the machine had none left")
    except ray.exceptions.RayError as error:
        return no_rate(f"its process died ({type(error).__name__})")


def measure(config: TrainConfig, location: str, options: RunOptions, *, workers: int = 1) -> Rate:
    """The rate of one worker of a trial, from random weights; raises what training raises."""
    began = time.monotonic()
    dataset = open_dataset(location)
    # What one of the workers does in a step; by itself it cannot normalise as they do together.
    images = max(math.ceil(config.batch_size / workers), least_images(config, side=sides(config)[0]))
    share = replace(config, batch_size=images, steps=max(config.steps, 1 + _STEPS))
    run = TrainingRun(share, dataset, options=options, ranks=Ranks(), is_new=False)
    ends: list[float] = []  # of the steps; in the first, memory is allocated and kernels are chosen
    batches = training_batches(dataset, share, first_step=0, loader_workers=options.loader_workers)
    with contextlib.closing(batches):
        for step, batch in enumerate(batches):
            run.step(step, batch)
            ends.append(time.monotonic())
            if len(ends) > _STEPS or (len(ends) > 2 and ends[-1] - ends[0] > _SECONDS):
                break
    seconds = (ends[-1] - ends[0]) / (len(ends) - 1)
    return Rate(
        step=seconds,
        validation=_seconds_per_image(run) * len(run.validation) / workers,
        start=max(0.0, ends[0] - began - seconds),
    )


def _seconds_per_image(run: TrainingRun) -> float:
    """Of validating some batches; the first counts only where there is no other."""
    order = np.arange(min(len(run.validation), (1 + _LOOKS) * run.micro_batch))
    shares = [order[first : first + run.micro_batch] for first in range(0, len(order), run.micro_batch)]
    took: list[float] = []
    for share in shares:
        began = time.monotonic()
        detect(run.best_model, run.validation, share, batch_size=run.micro_batch, device=run.device, config=run.config)
        took.append(time.monotonic() - began)
        if len(took) > 1 and sum(took[1:]) > _SECONDS:
            break
    counted = slice(min(1, len(took) - 1), len(took))
    return sum(took[counted]) / sum(map(len, shares[counted]))
