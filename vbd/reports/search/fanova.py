"""How much each varied field of a search matters: the share of the scores' variance that it explains by itself.

Functional analysis of variance of a random forest (Hutter, Hoos and Leyton-Brown, "An Efficient Approach for Assessing
Hyperparameter Importance", 2014) as Optuna computes it, for one family at a time. The forest is fitted to the trials that are
there, so its shares depend on them: each share comes with its range over trials drawn again, and with what it would be by
chance, if the field had no bearing on the scores.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vbd.config import TrainConfig
from vbd.evaluation.score import SCORE
from vbd.records import Trial

# Simulated: of 14 fields of which one makes half of the variance, the forest puts that one first in about half of the searches
# of 12 trials, in 17 of 20 of 20 trials, and in nearly all of 30.
MIN_TRIALS = 20
_TREES, _SMALL_TREES, _DEPTH = 32, 8, 8
_REPLICATES, _SHUFFLES = 20, 10
_RANGE = (0.1, 0.9)
# Labels of more values cannot be told apart by so few trials, and take long: each value is a column.
_MAX_LABELS = 8
# Numbers that are names.
_LABELS = ("seed", "fold")
_LAST_OF = {"phase_strengths": "last strength", "phase_rates": "last rate"}


@dataclass(frozen=True)
class Weighed:
    """Trials of one family that are fit to be compared, with their scores at one step."""

    configs: tuple[TrainConfig, ...]
    scores: NDArray[np.float64]  # (trials,) the best up to `step`
    step: int
    stopped: int  # of them, before all of their steps

    @property
    def is_enough(self) -> bool:
        """Whether a forest can tell anything from them."""
        return len(self.configs) >= MIN_TRIALS


@dataclass(frozen=True)
class Share:
    """What one field explains by itself, as a share of the variance of what the forest predicts."""

    name: str  # of the field, or of several that always changed together
    estimate: float
    low: float  # 10 % and 90 % points over trials drawn again
    high: float
    chance: float  # the largest share of ten shuffled copies of the field

    @property
    def is_beyond_chance(self) -> bool:
        """Whether nearly all of its range lies above what chance gives."""
        return self.low > self.chance


def weighed(trials: Sequence[Trial]) -> Weighed:
    """The trials of a family that finished or were stopped, by their best score up to a step that all of them reached.

    Stopped trials count: they are those with the worse values, and without them such a field would look as if it did not
    matter. Their scores, of fewer steps, would not compare with those of whole runs; so all are taken at the last step of
    whichever was stopped first. What pays only late counts for less there. Where none was stopped it is the end. Failed and
    running trials, and those of another number of steps than most, are left out.
    """
    ended = [trial for trial in trials if trial.status in ("finished", "stopped") and trial.history]
    if not ended:
        return Weighed((), np.zeros(0), 0, 0)
    counts = Counter(trial.config.steps for trial in ended)
    usual = min(counts, key=lambda steps: (-counts[steps], steps))
    ended = [trial for trial in ended if trial.config.steps == usual]
    step = min(trial.history[-1]["step"] for trial in ended)
    scores = np.array([_best_until(trial, step) for trial in ended])
    known = [trial for trial, score in zip(ended, scores, strict=True) if not math.isnan(score)]
    stopped = sum(trial.status == "stopped" for trial in known)
    return Weighed(tuple(trial.config for trial in known), scores[~np.isnan(scores)], step, stopped)


def _best_until(trial: Trial, step: int) -> float:
    """Where a report's score is missing, because its fold holds nothing to find, there is none."""
    scores = [report.get(SCORE) for report in trial.history if report["step"] <= step]
    return max((score for score in scores if score is not None and not math.isnan(score)), default=math.nan)


def shares_of(trials: Weighed, *, seed: int = 0) -> tuple[Share, ...]:
    """The share of each field that varied, the largest first; none where nothing varied, or no score differs."""
    columns = varied(trials.configs)
    scores = trials.scores
    if not columns or np.ptp(scores) == 0:
        return ()
    rng = np.random.default_rng(seed)
    estimates = _forest(columns, scores, trees=_TREES, seed=seed)
    drawn = [rng.integers(0, len(scores), len(scores)) for _ in range(_REPLICATES)]
    again = np.array([
        _forest({name: column.taken(rows) for name, column in columns.items()}, scores[rows], trees=_SMALL_TREES, seed=i)
        for i, rows in enumerate(drawn)
        if np.ptp(scores[rows]) > 0
    ])  # fmt: skip
    low, high = np.quantile(again, _RANGE, axis=0)
    chance = np.max([_of_shuffled(columns, scores, rng, seed=i) for i in range(_SHUFFLES)], axis=0)
    found = [
        Share(name, *map(float, values)) for name, *values in zip(columns, estimates, low, high, chance, strict=True)
    ]
    return tuple(sorted(found, key=lambda share: -share.estimate))


def _of_shuffled(
    columns: dict[str, "Column"], scores: NDArray[np.float64], rng: np.random.Generator, *, seed: int
) -> list[float]:
    """The share that each field has by chance: that of its shuffled copy, beside all the fields as they are."""
    copies = {f"shuffled {name}": column.taken(rng.permutation(len(scores))) for name, column in columns.items()}
    return _forest(columns | copies, scores, trees=_SMALL_TREES, seed=seed)[len(columns) :]


# ------------------------------------------------------------------------------------------------------------ columns


@dataclass(frozen=True)
class Column:
    """A field of each trial, as whole numbers: places among its sorted values."""

    places: NDArray[np.int64]  # (trials,)
    count: int  # of different values
    is_label: bool  # without an order

    def taken(self, rows: NDArray[np.int64]) -> "Column":
        """The field of some of the trials."""
        return dataclasses.replace(self, places=self.places[rows])


def varied(configs: Sequence[TrainConfig]) -> dict[str, Column]:
    """The fields that vary among configs of one family; those that always change together are one.

    Numbers count by their rank, so that no scale has to be chosen. A field that means nothing in some configs has one value in
    all of those: policy A is strength 0.
    """
    found: dict[str, Column] = {}
    has_phases = any(config.phase_steps for config in configs)
    for field in dataclasses.fields(TrainConfig):
        if field.name in ("detector", "phase_steps") or (field.name in _LAST_OF and not has_phases):
            continue
        name = _LAST_OF.get(field.name, field.name)
        column = _column([_value(config, field.name) for config in configs], field.name)
        if column.count < 2 or (column.is_label and column.count > _MAX_LABELS):
            continue
        same = next((name for name, other in found.items() if _always_together(column, other)), None)
        if same:
            found = {f"{known}, {name}" if known == same else known: other for known, other in found.items()}
        else:
            found[name] = column
    return found


def _value(config: TrainConfig, name: str) -> Any:
    """A field as it works; of a schedule what it ends with."""
    is_plain = config.policy == "A"
    match name:
        case "strength":
            return 0.0 if is_plain else config.strength
        case "phase_strengths":
            return 0.0 if is_plain else (config.strength, *config.phase_strengths)[-1]
        case "phase_rates":
            return (1.0, *config.phase_rates)[-1]
    return getattr(config, name)


def _column(values: Sequence[Any], name: str) -> Column:
    is_number = all(isinstance(value, (int, float)) for value in values)
    order = sorted(set(values))
    place = {value: i for i, value in enumerate(order)}
    return Column(np.array([place[value] for value in values], np.int64), len(order), not is_number or name in _LABELS)


def _always_together(one: Column, other: Column) -> bool:
    """Whether two fields part the trials alike, so that nothing can tell which of them matters."""
    if one.count != other.count:
        return False
    if one.count == len(one.places):  # each trial has its own value: only the order can be the same
        return any(np.array_equal(one.places, places) for places in (other.places, other.count - 1 - other.places))
    return len(set(zip(one.places.tolist(), other.places.tolist(), strict=True))) == one.count


# ------------------------------------------------------------------------------------------------------------- Optuna


def _forest(columns: dict[str, Column], scores: NDArray[np.float64], *, trees: int, seed: int) -> list[float]:
    """The share of each column, by Optuna, in an in-memory study of these trials."""
    import optuna
    from optuna.distributions import CategoricalDistribution, FloatDistribution
    from optuna.importance import FanovaImportanceEvaluator

    optuna.logging.set_verbosity(optuna.logging.WARNING)  # else a line for each study
    # Bounds half a place beyond the ends, so that each place has the same room.
    kinds: dict[str, Any] = {
        name: CategoricalDistribution(range(c.count)) if c.is_label else FloatDistribution(-0.5, c.count - 0.5)
        for name, c in columns.items()
    }
    places = {name: column.places.tolist() for name, column in columns.items()}
    study = optuna.create_study(direction="maximize")
    study.add_trials([
        optuna.create_trial(params={name: places[name][i] for name in columns}, distributions=kinds, value=score)
        for i, score in enumerate(scores.tolist())
    ])  # fmt: skip
    found = FanovaImportanceEvaluator(n_trees=trees, max_depth=_DEPTH, seed=seed).evaluate(study)
    return [float(found[name]) for name in columns]
