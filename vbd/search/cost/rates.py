"""How fast a detector trains here: seconds of a step, of a validation and to begin, measured or estimated by pixels."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from vbd.config import VARIANTS, Family, TrainConfig, checked
from vbd.config.checked import NanForNull, Seconds, Size
from vbd.records import Trial

# Seconds or hours; NaN where they are not known.
Measured = Annotated[Seconds, NanForNull()]


@dataclass(frozen=True, order=True)
class Combination:
    """What decides how long a step takes."""

    detector: Family
    variant: str
    image_size: int
    batch_size: int

    def __str__(self) -> str:
        return f"{self.detector} {self.variant} {self.image_size} px x {self.batch_size}"

    @property
    def pixels(self) -> int:
        """Of a batch."""
        return self.image_size**2 * self.batch_size

    @property
    def guess(self) -> int:
        """Greater for what probably takes longer: pixels, and the place of the variant among those of its family."""
        return self.pixels * (1 + VARIANTS[self.detector].index(self.variant))


@dataclass(frozen=True)
class Rate:
    """Seconds on what one trial holds; NaN with a `problem`, which says why there are none."""

    step: Measured
    validation: Measured
    start: Measured  # from the call to the first step
    source: Literal["measured", "trials", "estimated"] = "measured"
    problem: str = ""
    is_final: bool = False  # the problem is an error of the training itself, which every trial would meet

    @property
    def is_known(self) -> bool:
        """Whether there are seconds to count with."""
        return math.isfinite(self.step)


Rates = Mapping[Combination, Rate]


@dataclass(frozen=True)
class RateRow:
    """A combination and its rate, as forecast.json holds them."""

    detector: Family
    variant: str
    image_size: Size
    batch_size: Size
    step: Measured
    validation: Measured
    start: Measured
    source: Literal["measured", "trials", "estimated"]
    problem: str
    is_final: bool = False


def combination_of(config: TrainConfig) -> Combination:
    """The fields of a config that its speed depends on."""
    return Combination(config.detector, config.variant, config.image_size, config.batch_size)


def no_rate(problem: str, *, is_final: bool = False) -> Rate:
    """The rate of what could not be measured."""
    return Rate(math.nan, math.nan, math.nan, problem=problem, is_final=is_final)


def final_problem(config: TrainConfig, rates: Rates) -> str:
    """Why no trial of a config can be trained here, "" when it may: its combination failed, or all of its family did."""
    mine = combination_of(config)
    of_family = [rate for one, rate in rates.items() if one.detector == mine.detector]
    decisive = [rates[mine]] if mine in rates else of_family
    return decisive[0].problem if decisive and all(rate.is_final for rate in decisive) else ""


def attempts_of(trial: Trial) -> list[list[dict[str, Any]]]:
    """The reports of a trial by the process that made them, in order; without those that tell no time."""
    attempts: dict[float, list[dict[str, Any]]] = {}
    for report in trial.history:
        if report.get("attempt_started") and report.get("timestamp"):
            attempts.setdefault(report["attempt_started"], []).append(report)
    return [attempts[started] for started in sorted(attempts)]


def rates_of(trials: Sequence[Trial]) -> dict[Combination, Rate]:
    """What the reports of trials say, each attempt of a trial weighed alike."""
    seen: dict[Combination, list[Rate]] = {}
    for trial in trials:
        for reports in attempts_of(trial):
            speed = reports[-1].get("images_per_second")
            if speed:
                seen.setdefault(combination_of(trial.config), []).append(
                    Rate(
                        step=trial.config.batch_size / speed,
                        validation=_mean([report.get("validation_seconds") or 0.0 for report in reports]),
                        start=_seconds_to_start(reports[0]),
                    )
                )
    return {combination: _together(rates) for combination, rates in seen.items()}


def _seconds_to_start(report: Mapping[str, Any]) -> float:
    """`seconds` of a report are counted from the first step on."""
    return max(0.0, report["timestamp"] - report["attempt_started"] - (report.get("seconds") or 0.0))


def _together(rates: Sequence[Rate]) -> Rate:
    step, validation, start = (_mean(of) for of in zip(*((r.step, r.validation, r.start) for r in rates), strict=True))
    return Rate(step, validation, start, source="trials")


def rate_of(combination: Combination, rates: Rates) -> Rate:
    """The rate of a combination; when it is not known, scaled by pixels from those that resemble it most.

    These are those of the same variant, or else of the same family, or else all: their geometric mean, so that a small
    detector and a large one, both scaled, bracket what lies between.
    """
    known = {other: rate for other, rate in rates.items() if rate.is_known}
    if combination in known:
        return known[combination]
    problem = rates[combination].problem if combination in rates else ""
    for fields in (("detector", "variant"), ("detector",), ()):
        alike = {
            other: rate
            for other, rate in known.items()
            if all(getattr(other, field) == getattr(combination, field) for field in fields)
        }
        if alike:
            return replace(_scaled(combination, alike), problem=problem)
    return no_rate(problem)


def _scaled(combination: Combination, alike: Rates) -> Rate:
    """A validation looks at the same images whatever the batch, so its seconds follow the pixels of one image."""
    side = combination.image_size
    return Rate(
        step=_geometric_mean([rate.step * combination.pixels / other.pixels for other, rate in alike.items()]),
        validation=_geometric_mean([rate.validation * (side / other.image_size) ** 2 for other, rate in alike.items()]),
        start=_mean([rate.start for rate in alike.values()]),
        source="estimated",
    )


def to_measure(combinations: Sequence[Combination], *, at_most: int) -> list[Combination]:
    """Of each family in turn the probably cheapest and costliest, then the others, the costliest first."""
    families: dict[str, list[Combination]] = {}
    for combination in sorted(set(combinations), key=lambda one: (one.guess, one)):
        families.setdefault(combination.detector, []).append(combination)
    in_order = [[of[0], *reversed(of[1:])] for of in families.values()]
    most = max(map(len, in_order), default=0)
    in_turn = [of[place] for place in range(most) for of in in_order if place < len(of)]
    return in_turn[:at_most]


def rates_to_json(rates: Rates) -> list[dict[str, Any]]:
    """One object for each combination."""
    return [
        {field: getattr(combination, field) for field in ("detector", "variant", "image_size", "batch_size")}
        | {field: getattr(rate, field) for field in ("step", "validation", "start", "source", "problem", "is_final")}
        for combination, rate in sorted(rates.items())
    ]


def rates_of_rows(rows: Sequence[RateRow], *, where: str) -> dict[Combination, Rate]:
    """The inverse of `rates_to_json`; raises InputError for a variant that its detector does not have."""
    rates = {}
    for i, row in enumerate(rows):
        if row.variant not in VARIANTS[row.detector]:
            problem = f"rates[{i}].variant is {row.variant!r}; want one of {', '.join(VARIANTS[row.detector])}"
            raise checked.wrong(where, problem, again="remove it to measure again")
        combination = Combination(row.detector, row.variant, row.image_size, row.batch_size)
        rates[combination] = Rate(
            row.step, row.validation, row.start, source=row.source, problem=row.problem, is_final=row.is_final
        )
    return rates


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _geometric_mean(values: Sequence[float]) -> float:
    return math.prod(values) ** (1 / len(values))
