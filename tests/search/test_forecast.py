import math
from dataclasses import replace
from pathlib import Path

import pytest

from tests.search.histories import reports, trial_of
from vbd import storage
from vbd.config import SearchConfig, TrainConfig
from vbd.errors import InputError
from vbd.search.cost.forecast import (
    Actual,
    Devices,
    Record,
    actual,
    compare,
    describe,
    forecast,
    occupied_seconds,
    read_record,
    write_record,
)
from vbd.search.cost.rates import Combination, Rate, combination_of, no_rate

BASE = TrainConfig(image_size=128, batch_size=8, steps=40, report_every=10)
FIFO = SearchConfig(preset="mine", candidates=(), scheduler="fifo")
HALVING = replace(FIFO, scheduler="halving", grace_share=0.25, reduction=2)
TWO_CPUS = Devices("CPU", 2, 1)
RATES = {combination_of(BASE): Rate(step=1.0, validation=2.0, start=5.0)}
WHOLE = 5 + 40 * 1 + 4 * 2  # seconds of one trial


def configs(count: int) -> list[TrainConfig]:
    return [replace(BASE, seed=seed) for seed in range(count)]


# ------------------------------------------------------------------------------------------------- before the start


def test_without_stopping_every_step_validation_and_start_is_paid_for() -> None:
    found = forecast(configs(3), [], RATES, search=FIFO, devices=TWO_CPUS)
    assert found.at_most == found.expected == pytest.approx(3 * WHOLE / 3600)
    assert found.seconds_left == found.seconds_left_at_most == pytest.approx(2 * WHOLE)  # three on two devices
    assert (found.trials, found.combinations, found.measured, found.spent) == (3, 1, 1, 0)


def test_the_last_step_is_a_report_whatever_the_interval() -> None:
    config = replace(BASE, steps=45)
    found = forecast([config], [], RATES, search=FIFO, devices=TWO_CPUS)
    assert found.at_most == pytest.approx((5 + 45 + 5 * 2) / 3600)


def test_a_trial_on_several_devices_counts_each_and_leaves_room_for_fewer() -> None:
    four = Devices("GPU", 4, 2)
    found = forecast(configs(4), [], RATES, search=FIFO, devices=four)
    assert found.at_most == pytest.approx(4 * 2 * WHOLE / 3600)
    assert found.seconds_left == pytest.approx(2 * WHOLE)


@pytest.mark.parametrize(("count", "per_trial", "slots"), [(2, 1, 2), (1, 0.5, 2), (0.3, 0.1, 3), (0, 1, 1), (3, 2, 1)])
def test_slots_of_devices(count: float, per_trial: float, slots: int) -> None:
    assert Devices("GPU", count, per_trial).slots == slots


def test_halving_is_expected_to_take_less_than_all_steps() -> None:
    found = forecast(configs(8), [], RATES, search=HALVING, devices=TWO_CPUS)
    assert found.at_most == pytest.approx(8 * WHOLE / 3600)
    # At least all to the first rung, and two to their ends.
    assert 6 * (5 + 10 + 2) + 2 * WHOLE < found.expected * 3600 < 0.9 * 8 * WHOLE
    assert found.expected * 3600 / 2 < found.seconds_left < found.seconds_left_at_most


def test_families_are_halved_each_by_itself() -> None:
    other = replace(BASE, detector="fcos", variant="resnet18")
    rates = RATES | {combination_of(other): RATES[combination_of(BASE)]}
    apart = forecast([*configs(4), other], [], rates, search=HALVING, devices=TWO_CPUS)
    alone = forecast(configs(4), [], rates, search=HALVING, devices=TWO_CPUS)
    # The only one of its family is not stopped.
    assert apart.expected - alone.expected == pytest.approx(WHOLE / 3600, rel=0.25)


def test_a_combination_that_cannot_be_trained_takes_nothing() -> None:
    large = replace(BASE, image_size=256)
    rates = RATES | {combination_of(large): no_rate("ValueError: too few values", is_final=True)}
    found = forecast([BASE, large], [], rates, search=FIFO, devices=TWO_CPUS)
    assert found.at_most == pytest.approx(WHOLE / 3600)
    assert found.problems == ("yolox nano 256 px x 8: ValueError: too few values, so its trials fail",)


# ------------------------------------------------------------------------------------------------- while it runs


def test_ended_trials_count_what_they_took_and_running_ones_what_is_left() -> None:
    done, stopped, running, _ = configs(4)
    trials = [
        trial_of(done, *reports(done, 40)),
        trial_of(stopped, *reports(stopped, 10), status="stopped"),
        trial_of(running, *reports(running, 20), status="running"),
    ]
    found = forecast(configs(4), trials, {}, search=FIFO, devices=TWO_CPUS)
    spent = WHOLE + (5 + 10 + 2) + (5 + 20 + 4)
    assert found.spent == pytest.approx(spent / 3600)
    assert found.at_most == pytest.approx((spent + (20 + 4) + WHOLE) / 3600)
    assert found.seconds_left == pytest.approx(WHOLE)  # beside the other's 24 s
    assert found.trials == 4


def test_a_running_trial_that_is_the_best_at_its_rung_is_expected_to_go_on() -> None:
    running = configs(8)[0]
    others = [trial_of(config, *reports(config, 10), status="stopped") for config in configs(8)[1:]]
    trial = trial_of(running, *reports(running, 20), status="running")
    found = forecast(configs(8), [trial, *others], RATES, search=HALVING, devices=TWO_CPUS)
    assert (found.expected - found.spent) * 3600 == pytest.approx(24, rel=0.1)  # at the speed of a simulated trial
    assert (found.at_most - found.spent) * 3600 == pytest.approx(24)


def test_what_trials_measured_replaces_what_was_measured_before() -> None:
    first = configs(1)[0]
    trial = trial_of(first, *reports(first, 10, step=3.0), status="running")
    found = forecast(configs(2), [trial], RATES, search=FIFO, devices=TWO_CPUS)
    assert found.at_most == pytest.approx(((5 + 30 + 2) + (90 + 6) + (5 + 120 + 8)) / 3600)


def test_a_trial_drawn_as_the_search_goes_takes_a_planned_one_of_its_combination_or_family() -> None:
    large = replace(BASE, image_size=256)
    drawn = replace(BASE, learning_rate=5e-4)
    trial = trial_of(drawn, *reports(drawn, 40))
    rates = RATES | {combination_of(large): Rate(10, 20, 5)}
    left = 5 + 400 + 80
    found = forecast([large, BASE], [trial], rates, search=FIFO, devices=TWO_CPUS)
    assert found.at_most - found.spent == pytest.approx(left / 3600)
    another_size = replace(drawn, image_size=64)
    trial = trial_of(another_size, *reports(another_size, 40))
    assert forecast([BASE, large], [trial], rates, search=FIFO, devices=TWO_CPUS).trials == 2
    more = [trial_of(replace(drawn, seed=seed)) for seed in range(3)]
    assert forecast([BASE], more, rates, search=FIFO, devices=TWO_CPUS).trials == 3  # more than were planned
    # Where families compete for trials, one takes the place of another's, but not of a classifier's.
    plan = [BASE, replace(BASE, detector="fcos", variant="resnet18"), replace(BASE, detector="classifier")]
    optuna = replace(FIFO, searcher="optuna")
    assert forecast(plan, more[:2], rates, search=optuna, devices=TWO_CPUS).trials == 3
    assert forecast(plan, more[:2], rates, search=FIFO, devices=TWO_CPUS).trials == 4


def test_a_population_takes_its_members_steps_whoever_descends_from_whom() -> None:
    population = replace(FIFO, scheduler="population")
    good, bad = configs(2)
    child = replace(good, phase_steps=(20,), phase_strengths=(0.5,), phase_rates=(1.2,))
    trials = [
        trial_of(good, *reports(good, 20), status="waiting"),
        trial_of(bad, *reports(bad, 20), status="stopped"),
        trial_of(child, status="running"),
    ]
    found = forecast(configs(2), trials, RATES, search=population, devices=TWO_CPUS)
    left = 20 + 4
    assert found.at_most == pytest.approx((2 * (5 + 20 + 4) + 2 * left) / 3600)


def test_attempts_of_a_trial_that_died_between_are_all_paid_for() -> None:
    again = reports(BASE, 40, began=5000.0, first=20)
    trial = trial_of(BASE, *reports(BASE, 20), *again)
    assert occupied_seconds(trial) == (5 + 20 + 4) + (5 + 20 + 4)
    assert occupied_seconds(trial_of(BASE, seconds=12.0)) == 12.0  # nothing but the total is known


# ------------------------------------------------------------------------------------------------- in words


def test_the_forecast_in_words_with_its_bounds_and_money() -> None:
    found = forecast(
        configs(8), [], {combination_of(BASE): Rate(360.0, 0, 0)}, search=HALVING, devices=TWO_CPUS, price=3
    )
    found = replace(found, expected=18.127, seconds_left=32_640.0)
    assert describe(found) == (
        "forecast: 8 trials take about 18 CPU-hours (at most 32 if none is stopped), 9 h 4 min with 2 CPU(s); "
        "it costs about 54.38, at most 96.00"
    )


def test_the_forecast_in_words_when_nobody_is_stopped() -> None:
    found = forecast(
        configs(2), [], {combination_of(BASE): Rate(360.0, 0, 0)}, search=FIFO, devices=TWO_CPUS, price=0.5
    )
    assert describe(found) == "forecast: 2 trials take about 8 CPU-hours, 4 h 0 min with 2 CPU(s); it costs about 4.00"


def test_on_a_cluster_that_grows_the_time_is_told_as_that_with_all_that_may_come() -> None:
    eight = Devices("GPU", 8, 1, grows=True)
    found = forecast(configs(8), [], {combination_of(BASE): Rate(360.0, 0, 0)}, search=FIFO, devices=eight)
    assert describe(found) == "forecast: 8 trials take about 32 GPU-hours, 4 h 0 min with up to 8 GPU(s)"
    # Nobody knows for how long how many of them were there.
    assert math.isnan(actual([trial_of(BASE, *reports(BASE, 40))], devices=eight).busy_share)


def test_the_forecast_says_what_is_estimated_and_what_failed() -> None:
    large = replace(BASE, image_size=256)
    rates = RATES | {combination_of(large): no_rate("out of memory")}
    found = forecast([BASE, large], [], rates, search=FIFO, devices=TWO_CPUS)
    assert describe(found).splitlines()[1] == (
        "  1 of 2 combinations are estimated by their pixels; yolox nano 256 px x 8: out of memory"
    )


def test_without_any_rate_there_is_no_forecast_but_a_reason() -> None:
    found = forecast([BASE], [], {combination_of(BASE): no_rate("it died")}, search=FIFO, devices=TWO_CPUS)
    assert not found.is_known
    assert describe(found).splitlines() == [
        "forecast: none for 1 trials, as no combination could be measured",
        "  yolox nano 128 px x 8: it died",
    ]


def test_a_search_without_trials_takes_nothing() -> None:
    found = forecast([], [], {}, search=HALVING, devices=TWO_CPUS)
    assert (found.at_most, found.seconds_left) == (0, 0)


# ------------------------------------------------------------------------------------------------- at the end


def test_what_was_taken_leaves_out_the_time_between_two_sessions() -> None:
    one, two = configs(2)
    again = reports(two, 40, began=9000.0, first=20)
    trials = [trial_of(one, *reports(one, 40)), trial_of(two, *reports(two, 20), *again)]
    taken = actual(trials, devices=TWO_CPUS, price=2.0)
    assert taken.seconds == WHOLE + 29
    assert taken.device_hours == pytest.approx((WHOLE + 29 + 29) / 3600)
    assert taken.busy_share == pytest.approx((WHOLE + 29 + 29) / (2 * (WHOLE + 29)))
    assert math.isnan(actual([], devices=TWO_CPUS).busy_share)


def test_the_comparison_in_words() -> None:
    before = replace(forecast(configs(2), [], RATES, search=FIFO, devices=TWO_CPUS), expected=4.0)
    assert compare(before, Actual(5.0, 10_000, 0.9, 2.0)) == (
        "taken: 5 CPU-hours of about 4 forecast (125%), in 2 h 47 min; the CPUs were busy for 90% of it; it cost 10.00"
    )
    unknown = forecast([BASE], [], {}, search=FIFO, devices=TWO_CPUS)
    assert compare(unknown, Actual(5.0, 60, math.nan)) == "taken: 5 CPU-hours without a forecast, in 60 s"


# ------------------------------------------------------------------------------------------------- forecast.json


def test_the_record_comes_back_from_the_run_folder(tmp_path: Path) -> None:
    assert read_record(str(tmp_path)) is None
    rates = RATES | {Combination("fcos", "resnet18", 128, 8): Rate(1, 2, 3, source="trials")}
    two = replace(TWO_CPUS, grows=True)
    before = forecast(configs(3), [], rates, search=HALVING, devices=two, price=1.5)
    for record in (Record(before, rates), Record(before, rates, Actual(1.0, 20.0, 0.5, 1.5))):
        write_record(str(tmp_path), record)
        assert read_record(str(tmp_path)) == record


def test_a_record_without_numbers_comes_back_without_them(tmp_path: Path) -> None:
    rates = {combination_of(BASE): no_rate("it died")}
    write_record(str(tmp_path), Record(forecast([BASE], [], rates, search=FIFO, devices=TWO_CPUS), rates))
    back = read_record(str(tmp_path))
    assert back
    assert not back.before.is_known
    assert back.before.problems == ("yolox nano 128 px x 8: it died",)


@pytest.mark.parametrize("content", [{"schema": 0}, {"schema": 1, "before": {}}, {"schema": 1, "rates": [{}]}])
def test_a_broken_record_is_told_with_its_place(tmp_path: Path, content: dict[str, object]) -> None:
    storage.write_json(str(tmp_path / "forecast.json"), content)
    with pytest.raises(InputError, match=r"forecast\.json: .*remove it to measure again"):
        read_record(str(tmp_path))
