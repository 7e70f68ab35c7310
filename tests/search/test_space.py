from collections import Counter
from dataclasses import replace

import optuna
import pytest

from vbd.config import Candidate, SearchConfig, TrainConfig, config_hash
from vbd.errors import InputError
from vbd.presets import smoke, study
from vbd.search.space import describe, draw_configs, number_of_trials, optuna_space, trial_config

SEARCH = SearchConfig(
    preset="test",
    candidates=(
        Candidate(TrainConfig(), ("A", "B", "C"), (0.5, 1.0), (1e-4, 1e-2), normal_shares=(0.1, 0.4), trials=12),
        Candidate(TrainConfig(detector="faster_rcnn", variant="resnet50"), ("A", "E"), (0.5,), (1e-5, 1e-3), trials=4),
    ),
)


def test_draws_repeat_with_the_seed_and_change_with_it() -> None:
    assert draw_configs(SEARCH) == draw_configs(SEARCH)
    assert draw_configs(SEARCH) != draw_configs(replace(SEARCH, seed=1))


def test_every_choice_is_drawn_equally_often() -> None:
    mine = [config for config in draw_configs(SEARCH) if config.detector == "yolox"]
    assert len(mine) == 12
    assert Counter(config.policy for config in mine) == {"A": 4, "B": 4, "C": 4}
    assert Counter(config.normal_share for config in mine) == {0.1: 6, 0.4: 6}


def test_learning_rates_fill_each_familys_own_range() -> None:
    for candidate in SEARCH.candidates:
        low, high = candidate.learning_rates
        rates = sorted(c.learning_rate for c in draw_configs(SEARCH) if c.detector == candidate.base.detector)
        assert low <= rates[0] <= rates[-1] <= high
        # One draw in each of n slices of the logarithmic range.
        ratio = (high / low) ** (1 / len(rates))
        for i, rate in enumerate(rates):
            assert low * ratio**i * 0.99 <= rate <= low * ratio ** (i + 1) * 1.01


def test_the_first_trials_come_from_every_family() -> None:
    assert {config.detector for config in draw_configs(SEARCH)[:2]} == {"yolox", "faster_rcnn"}


def test_a_grid_holds_every_combination_once_and_policy_a_has_no_strength() -> None:
    configs = draw_configs(study())
    per_family = Counter(config.detector for config in configs)
    assert set(per_family.values()) == {3 * (1 + 4 * 3)}  # seeds x (A + four policies x three strengths)
    assert len({config_hash(config) for config in configs}) == len(configs)
    assert {config.strength for config in configs if config.policy == "A"} == {1.0}


def test_the_study_compares_at_equal_steps() -> None:
    for candidate in study().candidates:
        mine = [c for c in draw_configs(study()) if c.detector == candidate.base.detector]
        assert len({(c.steps, c.learning_rate, c.batch_size, c.fold) for c in mine}) == 1


def test_optuna_draws_only_the_fields_of_the_family_it_drew() -> None:
    trial = optuna.trial.FixedTrial(
        {
            "family": "yolox",
            "yolox/policy": "B",
            "yolox/strength": 0.5,
            "yolox/normal_share": 0.4,
            "yolox/learning_rate": 1e-3,
        }
    )
    optuna_space(SEARCH)(trial)
    config = trial_config(SEARCH, trial.params)
    assert config == replace(TrainConfig(), policy="B", strength=0.5, normal_share=0.4, learning_rate=1e-3)


def test_a_preset_that_cannot_be_trained_is_told_before_the_search() -> None:
    candidate = replace(SEARCH.candidates[0], image_sizes=(100,))
    with pytest.raises(InputError, match="preset test: image_size is 100"):
        draw_configs(replace(SEARCH, candidates=(candidate,)))


def test_the_description_counts_the_trials() -> None:
    assert number_of_trials(SEARCH) == 16
    assert describe(SEARCH).startswith("test: 16 trials")
    assert "policy A|B|C" in describe(SEARCH)


def test_the_smoke_search_has_every_family() -> None:
    assert {config.detector for config in draw_configs(smoke())} == {"yolox", "faster_rcnn", "efficientdet"}
