import math

import pytest

from vbd.config import TrainConfig
from vbd.training import meter as module
from vbd.training.meter import Meter

CONFIG = TrainConfig(steps=100, batch_size=8)


class _Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    """A time that passes when it is told to."""
    clock = _Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_a_report_means_what_came_since_the_last_one(clock: _Clock) -> None:
    meter = Meter(CONFIG, first_step=0, say=None)
    for step, (loss, norm) in enumerate([(4.0, 1.0), (2.0, 3.0)]):
        meter.count(step, loss=loss, norm=norm)
    first = meter.report(validation_seconds=0, learning_rate=0.5)
    assert (first["step"], first["loss"], first["gradient_norm"], first["learning_rate"]) == (2, 3.0, 2.0, 0.5)
    meter.count(2, loss=7.0, norm=5.0)
    second = meter.report(validation_seconds=0, learning_rate=0.25)
    assert (second["step"], second["loss"], second["gradient_norm"], second["learning_rate"]) == (3, 7.0, 5.0, 0.25)


def test_a_step_without_a_finite_gradient_counts_as_done_but_in_no_mean(clock: _Clock) -> None:
    meter = Meter(CONFIG, first_step=0, say=None)
    meter.count(0, loss=4.0, norm=1.0)
    meter.count(1, loss=9.0, norm=math.inf)
    meter.count(2, loss=math.nan, norm=math.nan)
    numbers = meter.report(validation_seconds=0, learning_rate=0)
    assert (numbers["step"], numbers["loss"], numbers["gradient_norm"]) == (3, 4.0, 1.0)
    meter.count(3, loss=math.nan, norm=math.nan)
    assert math.isnan(meter.report(validation_seconds=0, learning_rate=0)["loss"])


def test_validation_is_no_part_of_the_images_per_second_nor_are_steps_of_an_earlier_attempt(clock: _Clock) -> None:
    meter = Meter(CONFIG, first_step=50, say=None)
    for first in (50, 60):
        for step in range(first, first + 10):
            meter.count(step, loss=1.0, norm=1.0)
        clock.now += 10 + 30  # of which validation takes 30
        numbers = meter.report(validation_seconds=30, learning_rate=0)
        assert numbers["images_per_second"] == 8
        assert numbers["validation_seconds"] == 30
    assert numbers["seconds"] == 80


def test_a_line_comes_every_half_minute_and_with_each_report(clock: _Clock) -> None:
    told = list[str]()
    meter = Meter(CONFIG, first_step=0, say=told.append)
    for step in range(40):
        clock.now += 1
        meter.count(step, loss=2.0, norm=1.0)
        meter.tell(learning_rate=1e-3)
    assert told == ["step 30/100: loss 2, learning rate 0.001, 8.0 images/s, 70 s left"]
    meter.tell_report(
        meter.report(validation_seconds=0, learning_rate=1e-3) | {"score": 0.12345},
    )
    assert told[1:] == [
        "step 40/100: loss 2, learning rate 0.001, 8.0 images/s, 60 s left, map_40_findings 0.1235",
    ]
    clock.now += 29
    meter.tell(learning_rate=1e-3)
    assert len(told) == 2  # the report's line was one too
    meter.tell_report({"score": math.nan, "loss": 2.0, "learning_rate": 1e-3})
    assert told[2].endswith("left, nothing to score on")


def test_nothing_is_said_to_nobody(clock: _Clock) -> None:
    meter = Meter(CONFIG, first_step=0, say=None)
    clock.now += 100
    meter.tell(learning_rate=1.0)
    meter.tell_report({"score": 0.5, "loss": 1.0, "learning_rate": 1.0})
