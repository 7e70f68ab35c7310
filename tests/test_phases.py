import dataclasses

import pytest

from vbd.config import TrainConfig, check_train_config
from vbd.config.phases import rate_at, strength_at, until, with_phase

PLAIN = TrainConfig(policy="E", strength=0.5, steps=100)
PHASED = dataclasses.replace(PLAIN, phase_steps=(20, 60), phase_strengths=(0.4, 0.9), phase_rates=(0.8, 1.5))


def test_a_phase_begins_at_its_step_and_lasts_to_the_next() -> None:
    steps = (0, 19, 20, 59, 60, 99)
    assert [strength_at(step, PHASED) for step in steps] == [0.5, 0.5, 0.4, 0.4, 0.9, 0.9]
    assert [rate_at(step, PHASED) for step in steps] == [1, 1, 0.8, 0.8, 1.5, 1.5]


def test_without_phases_nothing_changes() -> None:
    assert {(strength_at(step, PLAIN), rate_at(step, PLAIN)) for step in range(100)} == {(0.5, 1.0)}
    assert until(PLAIN, 50) == PLAIN


def test_policy_a_has_no_strength_to_change() -> None:
    assert strength_at(60, dataclasses.replace(PHASED, policy="A")) == 0.5
    assert rate_at(60, dataclasses.replace(PHASED, policy="A")) == 1.5


@pytest.mark.parametrize(("step", "kept"), [(0, 0), (20, 0), (21, 1), (60, 1), (61, 2), (100, 2)])
def test_a_checkpoint_depends_on_the_phases_that_began_before_its_step(step: int, kept: int) -> None:
    config = until(PHASED, step)
    assert (config.phase_steps, config.phase_strengths, config.phase_rates) == (
        (20, 60)[:kept],
        (0.4, 0.9)[:kept],
        (0.8, 1.5)[:kept],
    )
    assert dataclasses.replace(config, phase_steps=(), phase_strengths=(), phase_rates=()) == PLAIN


def test_a_new_phase_takes_the_place_of_later_ones() -> None:
    config = with_phase(PHASED, 60, strength=0.1, rate=0.7)
    assert (config.phase_steps, config.phase_strengths, config.phase_rates) == ((20, 60), (0.4, 0.1), (0.8, 0.7))
    assert with_phase(PHASED, 80, strength=0.1, rate=0.7).phase_steps == (20, 60, 80)
    assert with_phase(PHASED, 10, strength=0.1, rate=0.7).phase_steps == (10,)
    check_train_config(config)
