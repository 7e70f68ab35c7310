"""The fields that a search varies for one detector family, by values or within bounds, and the checks of them.

Fields that change nothing in a config, such as the strength of policy A, stand at one value, so that equal runs have equal
hashes and no run is made twice.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal, get_type_hints

from vbd.config import (
    RELATED_FIELDS,
    Candidate,
    Family,
    ReaderFusion,
    TrainConfig,
    check_train_config,
    train_config_from,
)
from vbd.config.checked import check_rules
from vbd.data.prepared import PreparedDataset
from vbd.errors import InputError

# Fields that no search varies, and why.
_FIXED = {
    "detector": "each family is a candidate of its own",
    "steps": "trials are compared at equal steps; set the steps of all instead",
    "phase_steps": "phases are what a population finds",
    "phase_strengths": "phases are what a population finds",
    "phase_rates": "phases are what a population finds",
}
# Fields that mean something only with some values of another, which therefore is drawn first.
_AFTER = ("strength", "repeat_threshold")


@dataclass(frozen=True)
class Dimension:
    """A field that a family varies: one of some values, or a number within bounds."""

    name: str
    values: tuple[Any, ...] = ()
    # Bounds where there are no values: drawn log-uniformly, or uniformly when `low` is 0.
    low: float = 0.0
    high: float = 0.0
    is_whole: bool = False

    @property
    def ends(self) -> tuple[Any, ...]:
        """The values, or the bounds."""
        return self.values or (self.rounded(self.low), self.rounded(self.high))

    def at(self, place: float) -> float:
        """The number at a place from 0 to 1 between the bounds."""
        between = self.low * (self.high / self.low) ** place if self.low else self.high * place
        return self.rounded(between)

    def rounded(self, value: float) -> float:
        """A number within the bounds as a config has it: three significant digits, or whole."""
        near = round(value) if self.is_whole else float(f"{value:.3g}")
        kind = int if self.is_whole else float
        return kind(min(max(near, self.low), self.high))

    def holds(self, value: Any) -> bool:
        """Whether the field may take the value."""
        return value in self.values if self.values else self.low <= value <= self.high


@dataclass(frozen=True)
class FamilySpace:
    """What the configs of one family are drawn from."""

    base: TrainConfig
    dimensions: tuple[Dimension, ...]
    trials: int
    equal_epochs: bool = False
    # How the dataset's readers were fused: a config that asks for just that asks for nothing.
    prepared_fusion: Literal[ReaderFusion, ""] = ""

    @property
    def family(self) -> Family:
        """The detector family."""
        return self.base.detector

    def config(self, values: Mapping[str, Any]) -> TrainConfig:
        """The config with these values of varied fields."""
        return canonical(replace(self.base, **values), self.prepared_fusion)

    def values(self, config: TrainConfig) -> dict[str, Any] | None:
        """The values of varied fields that give this config, without idle ones; None when it lies outside the space."""
        if self.config({d.name: getattr(config, d.name) for d in self.dimensions}) != config:
            return None
        found: dict[str, Any] = {}
        for dimension in in_order(self.dimensions):
            if not is_asked(dimension.name, found, self.base):
                continue
            own = getattr(config, dimension.name)
            # A field at its one value may have been drawn as another.
            alike = [own, *dimension.values]
            fitting = [v for v in alike if dimension.holds(v) and self._is_same(config, dimension.name, v)]
            if not fitting:
                return None
            found[dimension.name] = fitting[0]
        return found

    def holds(self, config: TrainConfig) -> bool:
        """Whether a config lies inside the space, and so counts towards its number of trials."""
        return self.values(config) is not None

    def _is_same(self, config: TrainConfig, name: str, value: Any) -> bool:
        return canonical(replace(config, **{name: value}), self.prepared_fusion) == config

    def count(self) -> int | None:
        """How many combinations of values there are; None when some field has bounds."""
        return math.prod(len(d.values) for d in self.dimensions) if all(d.values for d in self.dimensions) else None


def in_order(dimensions: tuple[Dimension, ...]) -> list[Dimension]:
    """The dimensions with those last that mean something only with some values of others."""
    return sorted(dimensions, key=lambda dimension: dimension.name in _AFTER)


def is_asked(name: str, values: Mapping[str, Any], base: TrainConfig) -> bool:
    """Whether a field means something beside the values drawn so far."""
    match name:
        case "strength":
            return values.get("policy", base.policy) != "A"
        case "repeat_threshold":
            return values.get("sampler", base.sampler) != "class_aware"
        case _:
            return True


def canonical(config: TrainConfig, prepared_fusion: Literal[ReaderFusion, ""] = "") -> TrainConfig:
    """The config with what changes nothing in it at one value."""
    changes: dict[str, Any] = {}
    if config.policy != "A" and config.strength == 0 and not config.phase_steps:
        changes["policy"] = "A"
    if changes.get("policy", config.policy) == "A":
        changes["strength"] = 1.0
    if config.sampler == "class_aware":
        changes["repeat_threshold"] = 0.0
    elif config.repeat_threshold == 0:
        changes["sampler"] = "repeat_factor"
    if config.reader_fusion == prepared_fusion:
        changes["reader_fusion"] = ""
    return replace(config, **changes)


def family_space(candidate: Candidate, dataset: PreparedDataset | None, *, where: str) -> FamilySpace:
    """The checked space of a candidate, as the dataset allows: one that carries no readers has no fusions to vary.

    Raises InputError that names `where`, family, field and value for the first that no config could be drawn or trained with.
    """
    check_rules(candidate, lambda name, value: f"{where}: {name} {value} for {candidate.base.detector}:")
    dimensions = tuple(_dimensions(candidate, where))
    if dataset is not None and not _has_several_readers(dataset):
        if candidate.base.reader_fusion:
            raise InputError(
                f"{where}: reader_fusion is {candidate.base.reader_fusion!r} for {candidate.base.detector}, but "
                f"{dataset.location} carries the boxes of one reader only; leave it empty"
            )
        dimensions = tuple(d for d in dimensions if d.name != "reader_fusion")
    space = FamilySpace(
        candidate.base,
        dimensions,
        candidate.trials,
        candidate.equal_epochs,
        prepared_fusion=dataset.options.fusion if dataset is not None else "",
    )
    _check_drawable(space, where)
    if dataset is not None:
        _check_folds(space, dataset, where)
    return space


def _has_several_readers(dataset: PreparedDataset) -> bool:
    from vbd.data.labelling.relabel import carried_fusions  # pandas: kept out of --help

    return bool(carried_fusions(dataset))


def _dimensions(candidate: Candidate, where: str) -> Iterator[Dimension]:
    """Ranges first, as they are drawn."""
    kinds = get_type_hints(TrainConfig)
    family = candidate.base.detector
    for name in (*candidate.ranges, *candidate.choices):
        place = f"{where}: {family}: {name}"
        if name not in kinds:
            raise InputError(f"{place} is no field that can be varied; those are {', '.join(varied_fields())}")
        if name in _FIXED:
            raise InputError(f"{place} cannot be varied: {_FIXED[name]}")
        if name in candidate.ranges and name in candidate.choices:
            raise InputError(f"{place} has both values and bounds; leave one of them")
    for name, (low, high) in candidate.ranges.items():
        _check_bounds(low, high, kinds[name], place=f"{where}: {family}: {name} {low}..{high}")
        bounds = Dimension(name, low=low, high=high, is_whole=kinds[name] is int)
        yield bounds if low < high else Dimension(name, values=(bounds.at(0),))
    for name, values in candidate.choices.items():
        if not values:
            raise InputError(f"{where}: {family}: {name} has no values to choose from")
        # 1 and 1.0 are the same run: one spelling, one hash.
        alike = (float(value) if kinds[name] is float and type(value) is int else value for value in values)
        yield Dimension(name, values=tuple(dict.fromkeys(alike)))


def varied_fields() -> list[str]:
    """The fields that a search may vary."""
    return [field.name for field in dataclasses.fields(TrainConfig) if field.name not in _FIXED]


def _check_bounds(low: float, high: float, kind: Any, *, place: str) -> None:
    if kind not in (int, float):
        raise InputError(f"{place}: the field is no number; give values to choose from")
    if not 0 <= low <= high < math.inf:
        raise InputError(f"{place}: want two numbers from 0 on, the lower first")
    if kind is int and (low != int(low) or high != int(high)):
        raise InputError(f"{place}: want whole numbers")


def _check_drawable(space: FamilySpace, where: str) -> None:
    """Checks every value by itself, and every pair of values of two fields that a rule compares."""
    start = replace(space.base, **{d.name: d.ends[0] for d in space.dimensions})
    ends = {d.name: d.ends for d in space.dimensions}
    train_config_from(dataclasses.asdict(start), where=where)
    for name, values in ends.items():
        for value in values:
            train_config_from(dataclasses.asdict(replace(start, **{name: value})), where=where)
    for one, other in RELATED_FIELDS:
        for pair in product(ends.get(one, ()), ends.get(other, ())):
            check_train_config(replace(start, **dict(zip((one, other), pair, strict=True))), where=where)


def _check_folds(space: FamilySpace, dataset: PreparedDataset, where: str) -> None:
    folds = next((d.ends for d in space.dimensions if d.name == "fold"), (space.base.fold,))
    if max(folds) >= dataset.options.num_folds:
        raise InputError(
            f"{where}: fold is {max(folds)} for {space.family}; {dataset.location} has folds 0 to "
            f"{dataset.options.num_folds - 1}"
        )
