"""What a search draws from: one candidate per detector family, each with its own ranges."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any, assert_never

import numpy as np

from vbd.config import Candidate, SearchConfig, TrainConfig, check_train_config, config_hash, train_config_from
from vbd.errors import InputError


def draw_configs(search: SearchConfig) -> list[TrainConfig]:
    """Every trial of a `random` or `grid` search, families in turn, no configuration twice.

    Raises InputError when a configuration cannot be trained.
    """
    match search.searcher:
        case "random" | "optuna":
            per_family = [_latin_hypercube(c, seed=search.seed + i) for i, c in enumerate(search.candidates)]
        case "grid":
            per_family = [_grid(candidate) for candidate in search.candidates]
        case _:
            assert_never(search.searcher)
    # In turn, so that the first trials to run, and the first to be compared, come from every family.
    in_turn = [config for configs in itertools.zip_longest(*per_family) for config in configs if config is not None]
    unique = list({config_hash(config): config for config in in_turn}.values())
    for config in unique:
        check_train_config(config, where=f"preset {search.preset}")
    return unique


def _choices(candidate: Candidate) -> dict[str, Sequence[Any]]:
    """The fields that vary, each with its values; an empty tuple leaves the base's value."""
    base = candidate.base
    return {
        "variant": candidate.variants or (base.variant,),
        "image_size": candidate.image_sizes or (base.image_size,),
        "policy": candidate.policies,
        "strength": candidate.strengths,
        "normal_share": candidate.normal_shares or (base.normal_share,),
        "seed": candidate.seeds,
    }


def _latin_hypercube(candidate: Candidate, *, seed: int) -> list[TrainConfig]:
    """Draws that use each value of each field equally often (McKay, Beckman and Conover 1979)."""
    rng = np.random.default_rng(seed)
    n = candidate.trials
    low, high = np.log(candidate.learning_rates)
    rates = np.exp(low + (high - low) * (rng.permutation(n) + rng.random(n)) / n)
    columns = {name: _balanced(values, n, rng) for name, values in _choices(candidate).items()}
    return [
        _without_idle_strength(
            dataclasses.replace(
                candidate.base,
                learning_rate=float(f"{rates[i]:.3g}"),
                **{name: values[i] for name, values in columns.items()},
            )
        )
        for i in range(n)
    ]


def _balanced(values: Sequence[Any], n: int, rng: np.random.Generator) -> list[Any]:
    """`n` draws in random order, no value used more than once oftener than another."""
    return [values[i] for _ in range(-(-n // len(values))) for i in rng.permutation(len(values))][:n]


def _grid(candidate: Candidate) -> list[TrainConfig]:
    """Every combination, at the base's learning rate."""
    choices = _choices(candidate)
    return [
        _without_idle_strength(dataclasses.replace(candidate.base, **dict(zip(choices, values, strict=True))))
        for values in itertools.product(*choices.values())
    ]


def _without_idle_strength(config: TrainConfig) -> TrainConfig:
    """Policy A has no strength: one value for all of them, so that equal runs have equal hashes."""
    return dataclasses.replace(config, strength=1.0) if config.policy == "A" else config


def optuna_space(search: SearchConfig) -> Callable[[Any], dict[str, Any]]:
    """The same space for Optuna, define-by-run: a family is drawn first, then that family's own fields."""
    candidates = {candidate.base.detector: candidate for candidate in search.candidates}

    def space(trial: Any) -> dict[str, Any]:
        family = trial.suggest_categorical("family", sorted(candidates))
        candidate = candidates[family]
        for name, values in _choices(candidate).items():
            if len(values) > 1:
                trial.suggest_categorical(f"{family}/{name}", list(values))
        trial.suggest_float(f"{family}/learning_rate", *candidate.learning_rates, log=True)
        return {}

    return space


def trial_config(search: SearchConfig, drawn: dict[str, Any]) -> TrainConfig:
    """The training config of what Tune hands to a trial: a whole config, or Optuna's `family/field` draws."""
    if "train" in drawn:
        return train_config_from(drawn["train"])
    family = drawn["family"]
    base = next((c.base for c in search.candidates if c.base.detector == family), None)
    if base is None:
        raise InputError(f"the search has no candidate for {family!r}")
    fields = {key.split("/", 1)[1]: value for key, value in drawn.items() if key.startswith(f"{family}/")}
    return _without_idle_strength(dataclasses.replace(base, **fields))


def number_of_trials(search: SearchConfig) -> int:
    """How many trials the search will start."""
    if search.searcher == "optuna":
        return sum(candidate.trials for candidate in search.candidates)
    return len(draw_configs(search))


def describe(search: SearchConfig) -> str:
    """The space in a few lines, printed before a search starts."""
    lines = [f"{search.preset}: {number_of_trials(search)} trials, {search.searcher} draws, {search.scheduler}"]
    for candidate in search.candidates:
        base = candidate.base
        varied = [f"{k} {'|'.join(map(str, v))}" for k, v in _choices(candidate).items() if len(v) > 1]
        rates = (
            ""
            if search.searcher == "grid"
            else f"learning_rate {candidate.learning_rates[0]:g}..{candidate.learning_rates[1]:g}"
        )
        lines.append(
            f"  {base.detector} {base.variant}: {base.steps} steps x {base.batch_size} images of {base.image_size} px; "
            + "; ".join([*varied, rates] if rates else varied)
        )
    return "\n".join(lines)
