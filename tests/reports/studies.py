"""Studies made up with numbers, whose best augmentation is known: arms trained in blocks of seed and fold."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np

from tests.reports.searches import BASES, STARTED, history_of, trial_of
from vbd.config import TrainConfig
from vbd.records import Trial
from vbd.search.space.draws import block_of, longer_run

YOLOX = BASES[0]
BLOCKS = tuple(itertools.product((0, 1), (0, 1, 2)))  # seed, fold
ARMS = (("A", 1.0), *itertools.product("BE", (0.25, 0.5, 1.0)))

Effect = Callable[[TrainConfig], float]  # of the augmentation on the score


def no_effect(config: TrainConfig) -> float:
    """All arms are equal."""
    return 0.0


def study_trials(
    effect: Effect = no_effect,
    *,
    base: TrainConfig = YOLOX,
    arms: Sequence[tuple[str, float]] = ARMS,
    blocks: Sequence[tuple[int, int]] = BLOCKS,
    equal_epochs: dict[str, float] | None = None,
    noise: float = 0.004,
    seed: int = 0,
) -> list[Trial]:
    """Every arm in every block; `equal_epochs` are policies trained as often longer, at full strength."""
    configs = [
        dataclasses.replace(base, policy=policy, strength=strength, seed=block[0], fold=block[1])
        for block in blocks
        for policy, strength in arms
    ]
    multiples = equal_epochs or {}
    full = [config for config in configs if config.policy in multiples and config.strength == 1]
    configs += [longer_run(config, multiples[config.policy]) for config in full]
    rng = np.random.default_rng(seed)
    easy = {block: rng.normal(0, 0.05) for block in sorted(set(blocks))}  # a block is easy for all arms alike
    trials = []
    for number, config in enumerate(configs):
        score = 0.3 + easy[block_of(config)] + effect(config) + float(rng.normal(0, noise))
        history = history_of(config, score, start=STARTED + number, steps=config.steps, place=number)
        trials.append(trial_of(config, score, history=history, number=number))
    return trials
