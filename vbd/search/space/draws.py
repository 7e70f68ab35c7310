"""What a search draws: the space of each detector family, the configs of a random search or a grid, and both in words."""

import itertools
import math
import textwrap
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any, assert_never

import numpy as np

from vbd.config import POLICIES, RunOptions, SearchConfig, TrainConfig
from vbd.data.batches.balance import epoch_multiple
from vbd.data.prepared import TEST_FOLD, PreparedDataset, read_rows
from vbd.errors import InputError
from vbd.search.space.dimensions import Dimension, FamilySpace, family_space
from vbd.training.microbatches import check_micro_batch

LARGEST_GRID = 100_000
# Finite spaces up to this size are written out where draws run out.
_WRITTEN_OUT = 20_000
# Draws again and again, in a space with bounds, before it is held to be exhausted.
_ROUNDS = 100


def spaces_of(search: SearchConfig, dataset: PreparedDataset | None = None) -> tuple[FamilySpace, ...]:
    """The checked space of each candidate; raises InputError for the first that no config could be drawn or trained with."""
    families = [candidate.base.detector for candidate in search.candidates]
    where = f"preset {search.preset}"
    if not families or len(set(families)) < len(families):
        told = ", ".join(families) or "none"
        raise InputError(f"{where}: candidates of the families {told}; want one candidate for each family")
    spaces = tuple(family_space(candidate, dataset, where=where) for candidate in search.candidates)
    if search.searcher == "grid":
        for space in spaces:
            _check_grid(space)
    return spaces


def draw_configs(search: SearchConfig, dataset: PreparedDataset | None = None) -> list[TrainConfig]:
    """Every trial of a random or a grid search, no configuration twice: families in turn, a grid's by blocks of (seed, fold).

    Raises InputError when the space is wrong. `dataset` may be left out when no candidate asks for equal epochs.
    """
    per_family = draws_per_family(search, spaces_of(search, dataset), dataset)
    if search.searcher != "grid":
        return in_turn(per_family)
    # Whole blocks first: a grid that is interrupted has compared the same arms on the same folds and seeds.
    blocks = sorted({block_of(config) for configs in per_family for config in configs})
    return [
        config
        for block in blocks
        for config in in_turn([[c for c in configs if block_of(c) == block] for configs in per_family])
    ]


def draws_per_family(
    search: SearchConfig, spaces: Sequence[FamilySpace], dataset: PreparedDataset | None
) -> list[list[TrainConfig]]:
    """The draws of each family, in the order of the candidates."""
    match search.searcher:
        case "random" | "optuna":
            return [random_draws(space, space.trials, seed=search.seed + i) for i, space in enumerate(spaces)]
        case "grid":
            multiples = _epoch_multiples(spaces, dataset)
            return [_grid(space, multiples if space.equal_epochs else {}) for space in spaces]
        case _:
            assert_never(search.searcher)


def in_turn(per_family: Iterable[Sequence[TrainConfig]]) -> list[TrainConfig]:
    """One of each family, then the next of each, so that the first to run, and to be compared, come from all of them."""
    return [config for configs in itertools.zip_longest(*per_family) for config in configs if config is not None]


def block_of(config: TrainConfig) -> tuple[int, int]:
    """What the arms of a comparison share: seed and fold."""
    return config.seed, config.fold


def check_micro_batches(search: SearchConfig, options: RunOptions, dataset: PreparedDataset | None = None) -> None:
    """Raises InputError when some config of the space puts fewer images at a time through its detector than it can train on."""
    # The fewest images, and the smallest: of each field the value that is worst.
    worst: dict[str, Callable[..., Any]] = {"batch_size": min, "accumulate": max, "image_size": min, "multi_scale": max}
    for space in spaces_of(search, dataset):
        ends = {dimension.name: dimension.ends for dimension in space.dimensions}
        config = replace(space.base, **{name: pick(ends[name]) for name, pick in worst.items() if name in ends})
        others = {name: ends.get(name, (getattr(config, name),)) for name in ("variant", "backbone_rate")}
        for variant, rate in itertools.product(*others.values()):
            check_micro_batch(
                replace(config, variant=variant, backbone_rate=rate),
                workers=search.workers_per_trial,
                sync_batchnorm=options.sync_batchnorm,
                where=f"preset {search.preset}",
            )


# ------------------------------------------------------------------------------------------------------------- random


def random_draws(space: FamilySpace, count: int, *, seed: int) -> list[TrainConfig]:
    """`count` different configs, or all that there are: a Latin hypercube, and draws again for what it holds twice."""
    rng = np.random.default_rng(seed)
    found = dict.fromkeys(_latin_hypercube(space, count, rng))
    if len(found) < count and (space.count() or math.inf) <= _WRITTEN_OUT:
        rest = [config for config in dict.fromkeys(_combinations(space)) if config not in found]
        chosen = rng.permutation(len(rest))[: count - len(found)]
        return [*found, *(rest[i] for i in chosen)]
    for _ in range(_ROUNDS):
        if len(found) >= count:
            break
        found |= dict.fromkeys(_latin_hypercube(space, count - len(found), rng))
    return list(found)


def _latin_hypercube(space: FamilySpace, n: int, rng: np.random.Generator) -> list[TrainConfig]:
    """Draws that use each value, or each n-th of the bounds, equally often (McKay, Beckman and Conover 1979)."""
    columns = {dimension.name: _column(dimension, n, rng) for dimension in space.dimensions}
    return [space.config({name: values[i] for name, values in columns.items()}) for i in range(n)]


def _column(dimension: Dimension, n: int, rng: np.random.Generator) -> list[Any]:
    if dimension.values:
        return _balanced(dimension.values, n, rng)
    return [dimension.at(place) for place in (rng.permutation(n) + rng.random(n)) / n]


def _balanced(values: Sequence[Any], n: int, rng: np.random.Generator) -> list[Any]:
    """`n` draws in random order, no value used more than once oftener than another."""
    return [values[i] for _ in range(-(-n // len(values))) for i in rng.permutation(len(values))][:n]


# --------------------------------------------------------------------------------------------------------------- grid


def _combinations(space: FamilySpace) -> Iterable[TrainConfig]:
    """Every combination of values; a field with bounds stays as in the base."""
    choices = {d.name: d.values for d in space.dimensions if d.values}
    for values in itertools.product(*choices.values()):
        yield space.config(dict(zip(choices, values, strict=True)))


def _check_grid(space: FamilySpace) -> None:
    """Raises InputError for a grid that is too large to be built."""
    size = math.prod(len(d.values) for d in space.dimensions if d.values)
    if size > LARGEST_GRID:
        raise InputError(
            f"a grid of {size:,} combinations for {space.family}; want at most {LARGEST_GRID:,}: give fewer values "
            "(--vary), or draw some of them (--set searcher=random)"
        )


def _grid(space: FamilySpace, multiples: dict[str, float]) -> list[TrainConfig]:
    """Every combination once, and those of equal epochs after them."""
    arms = list(dict.fromkeys(_combinations(space)))
    longer = [longer_run(config, multiples[config.policy]) for config in arms if multiples.get(config.policy, 1) > 1]
    return list(dict.fromkeys([*arms, *longer]))


def longer_run(config: TrainConfig, multiple: float) -> TrainConfig:
    """The config at full strength for `multiple` times its steps, rounded to whole reports.

    The schedule is stretched as a whole: warm-up keeps its share, and reports their number, because the best of more
    reports would be a better score by luck alone.
    """
    reports = -(-config.steps // config.report_every)
    report_every = max(1, round(config.steps * multiple / reports))
    steps = report_every * reports
    return replace(
        config,
        strength=1.0,
        steps=steps,
        report_every=report_every,
        warmup_steps=round(config.warmup_steps * steps / config.steps),
    )


def _epoch_multiples(spaces: Sequence[FamilySpace], dataset: PreparedDataset | None) -> dict[str, float]:
    if not any(space.equal_epochs for space in spaces):
        return {}
    if dataset is None:
        raise ValueError("equal epochs depend on the dataset")
    labels = label_sets_of(dataset)
    return {policy: epoch_multiple(policy, labels) for policy in POLICIES}


def label_sets_of(dataset: PreparedDataset) -> list[Collection[int]]:
    """The labels of each abnormal training image, of all folds."""
    rows = read_rows(dataset, ["fold", "labels"])
    pairs = zip(rows["fold"].to_pylist(), rows["labels"].to_pylist(), strict=True)
    return [labels for fold, labels in pairs if fold != TEST_FOLD and labels]


# ----------------------------------------------------------------------------------------------------------- in words

_ONLY_WITH = {"strength": "not with policy A", "repeat_threshold": "not with sampler class_aware"}
# What an empty value means.
_EMPTY = {"reader_fusion": "as prepared", "anchor_ratios": "the detector's", "subset": "all"}


def describe(search: SearchConfig, dataset: PreparedDataset | None = None) -> str:
    """The space in a few lines, printed before a search starts."""
    spaces = spaces_of(search, dataset)
    per_family = draws_per_family(search, spaces, dataset)
    lines = [f"{search.preset}: {sum(map(len, per_family)):,} trials, {_how(search)}"]
    if search.searcher == "grid":
        blocks = {block_of(config) for configs in per_family for config in configs}
        lines[0] += f", in {len(blocks)} blocks of one seed and fold" if len(blocks) > 1 else ""
    for space, configs in zip(spaces, per_family, strict=True):
        lines += _family_lines(search, space, configs)
    return "\n".join(lines)


def _how(search: SearchConfig) -> str:
    match search.scheduler:
        case "halving":
            how = f"at each rung the best 1 in {search.reduction} of a family go on"
        case "fifo":
            how = "none stopped early"
        case "population":
            how = "families trained as populations"
        case _:
            assert_never(search.scheduler)
    drawn = {
        "random": "drawn at random",
        "grid": "a grid",
        "optuna": "drawn by Optuna, half of each family's for it alone and the others where the scores lead",
    }
    return f"{drawn[search.searcher]}; {how}"


def _family_lines(search: SearchConfig, space: FamilySpace, configs: Sequence[TrainConfig]) -> list[str]:
    base, varied = space.base, {dimension.name for dimension in space.dimensions}
    size = "" if "image_size" in varied else f" of {base.image_size} px"
    images = "images" if "batch_size" in varied else f"{base.batch_size} images"
    name = base.detector if "variant" in varied else f"{base.detector} {base.variant}"
    first = f"  {name}: {len(configs):,} trials, {base.steps:,} steps x {images}{size}"
    if search.searcher == "grid":
        longer = {config.policy: config.steps for config in configs if config.steps != base.steps}
        told = ", ".join(f"{policy} {steps:,} steps" for policy, steps in sorted(longer.items()))
        first += f"; of them at equal epochs: {told}" if longer else ""
    elif len(configs) < space.trials:
        first += f"; {space.trials:,} were asked for, but the space holds no more"
    shown = [d for d in space.dimensions if len(d.ends) > 1 and (d.values or search.searcher != "grid")]
    words = "; ".join(map(_dimension_words, shown)).replace(" ", "\u00a0").replace(";\u00a0", "; ")
    lines = textwrap.wrap(words, 112, initial_indent="      ", subsequent_indent="      ", break_on_hyphens=False)
    return [first, *(line.replace("\u00a0", " ") for line in lines)]


def _dimension_words(dimension: Dimension) -> str:
    values = "|".join(_shown(value) or _EMPTY.get(dimension.name, "none") for value in dimension.values)
    values = values or f"{dimension.low:g}..{dimension.high:g}"
    condition = _ONLY_WITH.get(dimension.name)
    return f"{dimension.name} {values}" + (f" ({condition})" if condition else "")


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(_shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
