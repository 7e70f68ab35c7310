import json
import math

import pytest

from tests.search.histories import reports, trial_of
from vbd.config import TrainConfig, checked
from vbd.errors import InputError
from vbd.search.cost.rates import (
    Combination,
    Rate,
    RateRow,
    combination_of,
    final_problem,
    no_rate,
    rate_of,
    rates_of,
    rates_of_rows,
    rates_to_json,
    to_measure,
)

NANO = Combination("yolox", "nano", 128, 8)
CONFIG = TrainConfig(image_size=128, batch_size=8, steps=40, report_every=10)


def test_reports_tell_seconds_of_a_step_of_a_validation_and_to_start() -> None:
    trial = trial_of(CONFIG, *reports(CONFIG, 30, step=0.5, validation=3.0, start=7.0))
    assert rates_of([trial]) == {combination_of(CONFIG): Rate(0.5, 3.0, 7.0, source="trials")}


def test_attempts_of_all_trials_of_a_combination_are_averaged() -> None:
    slow = trial_of(CONFIG, *reports(CONFIG, 10, step=1.0), *reports(CONFIG, 20, step=2.0, began=2000.0, first=10))
    fast = trial_of(TrainConfig(image_size=128, batch_size=8, seed=1, steps=40, report_every=10))
    assert rates_of([slow, fast])[NANO].step == 1.5


def test_a_trial_without_reports_or_times_says_nothing() -> None:
    untimed = {"step": 10, "score": 0.1, "images_per_second": 5.0}
    assert rates_of([trial_of(CONFIG), trial_of(CONFIG, untimed)]) == {}


def test_what_is_measured_is_taken_as_it_is() -> None:
    rates = {NANO: Rate(1, 2, 3), Combination("yolox", "nano", 256, 8): Rate(9, 9, 9)}
    assert rate_of(NANO, rates) == Rate(1, 2, 3)


def test_a_step_is_scaled_by_the_pixels_of_a_batch_and_a_validation_by_those_of_an_image() -> None:
    found = rate_of(Combination("yolox", "nano", 256, 4), {NANO: Rate(1, 2, 3)})
    assert found == Rate(2, 8, 3, source="estimated")


def test_a_size_between_two_measured_ones_lies_between_their_estimates() -> None:
    rates = {NANO: Rate(1, 1, 1), Combination("yolox", "x", 128, 8): Rate(100, 4, 3)}
    assert rate_of(Combination("yolox", "m", 128, 8), rates) == Rate(10, 2, 2, source="estimated")


def test_the_same_variant_goes_before_the_family_and_the_family_before_others() -> None:
    rates = {
        NANO: Rate(1, 1, 1),
        Combination("yolox", "x", 128, 8): Rate(100, 1, 1),
        Combination("fcos", "resnet18", 128, 8): Rate(7, 1, 1),
    }
    assert rate_of(Combination("yolox", "nano", 256, 8), rates).step == 4
    assert rate_of(Combination("fcos", "resnet50", 128, 8), rates).step == 7
    assert rate_of(Combination("retinanet", "resnet18", 128, 8), {NANO: Rate(3, 1, 1)}).step == 3


def test_what_failed_is_estimated_with_its_problem_and_no_source_of_others() -> None:
    failed = Combination("yolox", "nano", 256, 8)
    rates = {NANO: Rate(1, 1, 1), failed: no_rate("out of memory")}
    assert rate_of(failed, rates) == Rate(4, 4, 1, source="estimated", problem="out of memory")
    assert rate_of(Combination("yolox", "nano", 512, 8), rates).step == 16
    assert not rate_of(failed, {failed: no_rate("out of memory")}).is_known


def test_the_cheapest_and_costliest_of_each_family_are_measured_first() -> None:
    sizes = [Combination("yolox", variant, side, 8) for variant in ("nano", "s") for side in (128, 256)]
    others = [Combination("fcos", "resnet18", side, 8) for side in (128, 256, 512)]
    chosen = to_measure([*sizes, *others, *sizes], at_most=6)
    assert [str(one) for one in chosen] == [
        "fcos resnet18 128 px x 8",
        "yolox nano 128 px x 8",
        "fcos resnet18 512 px x 8",
        "yolox s 256 px x 8",
        "fcos resnet18 256 px x 8",
        "yolox nano 256 px x 8",
    ]
    assert to_measure([], at_most=12) == []
    assert len(to_measure([*sizes, *others], at_most=12)) == 7


def test_rates_come_back_from_json_with_what_failed() -> None:
    rates = {
        NANO: Rate(1, 2, 3, source="trials"),
        Combination("fcos", "resnet18", 128, 8): no_rate("few", is_final=True),
    }
    rows = rates_to_json(rates)
    rows[0] |= dict.fromkeys(("step", "validation", "start"))  # as storage writes NaN
    back = rates_of_rows(_rows(rows), where="forecast.json")
    assert back[NANO] == rates[NANO]
    assert math.isnan(back[Combination("fcos", "resnet18", 128, 8)].step)
    assert back[Combination("fcos", "resnet18", 128, 8)].problem == "few"
    with pytest.raises(InputError, match=r"^forecast.json: rates\[0\].variant is 'd0'; want one of nano, tiny"):
        rates_of_rows(_rows([rows[0] | {"detector": "yolox", "variant": "d0"}]), where="forecast.json")


def test_a_record_of_an_earlier_version_has_no_final_problem() -> None:
    (row,) = rates_to_json({NANO: no_rate("died")})
    del row["is_final"]
    row |= dict.fromkeys(("step", "validation", "start"))  # as storage writes NaN
    assert not rates_of_rows(_rows([row]), where="forecast.json")[NANO].is_final


def _rows(values: list[dict]) -> list[RateRow]:
    return [checked.parse(json.dumps(row).encode(), RateRow, where="here", again="") for row in values]


@pytest.mark.parametrize(
    ("rates", "problem"),
    [
        ({}, ""),
        ({NANO: no_rate("its process died")}, ""),
        ({NANO: no_rate("few", is_final=True)}, "few"),
        # A combination that was not measured fails with its family, when all of it that was measured failed.
        ({Combination("yolox", "s", 640, 8): no_rate("few", is_final=True)}, "few"),
        ({Combination("yolox", "s", 640, 8): no_rate("few", is_final=True), NANO: Rate(1, 2, 3)}, ""),
        ({Combination("fcos", "resnet18", 128, 8): no_rate("few", is_final=True)}, ""),
    ],
)
def test_the_problem_of_a_config_that_cannot_be_trained(rates: dict[Combination, Rate], problem: str) -> None:
    config = TrainConfig(image_size=NANO.image_size, batch_size=NANO.batch_size)
    assert combination_of(config) == NANO
    assert final_problem(config, rates) == problem
