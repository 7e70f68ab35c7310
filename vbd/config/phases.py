"""The schedule of a run in phases: from some steps on another augmentation strength and another learning rate.

Steps count from 0, so a checkpoint of step s has the steps 0 .. s - 1 behind it: a phase that begins at s changes nothing
of it. Two configs that differ only in such phases share the checkpoint.
"""

from bisect import bisect_left, bisect_right
from dataclasses import replace

from vbd.config import TrainConfig


def strength_at(step: int, config: TrainConfig) -> float:
    """The augmentation's strength in a step, 0..1. Policy A has none: its config's idle number stays."""
    phase = _phase_at(step, config)
    return config.strength if phase is None or config.policy == "A" else config.phase_strengths[phase]


def rate_at(step: int, config: TrainConfig) -> float:
    """What the learning rate of a step is multiplied by; 1 before the first phase."""
    phase = _phase_at(step, config)
    return 1.0 if phase is None else config.phase_rates[phase]


def until(config: TrainConfig, step: int) -> TrainConfig:
    """The config without the phases that begin at `step` or later: all that a checkpoint of `step` depends on."""
    kept = bisect_left(config.phase_steps, step)
    return replace(
        config,
        phase_steps=config.phase_steps[:kept],
        phase_strengths=config.phase_strengths[:kept],
        phase_rates=config.phase_rates[:kept],
    )


def with_phase(config: TrainConfig, step: int, *, strength: float, rate: float) -> TrainConfig:
    """The config with a phase from `step` to the end, in the place of those that begin there or later."""
    before = until(config, step)
    return replace(
        before,
        phase_steps=(*before.phase_steps, step),
        phase_strengths=(*before.phase_strengths, strength),
        phase_rates=(*before.phase_rates, rate),
    )


def _phase_at(step: int, config: TrainConfig) -> int | None:
    """The phase that a step is in; None before the first."""
    begun = bisect_right(config.phase_steps, step)
    return begun - 1 if begun else None
