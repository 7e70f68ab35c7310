"""What a finished run tells another search about where to look first."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, assert_never

from vbd.config import Searcher, TrainConfig
from vbd.data.prepared import PreparedDataset
from vbd.records import Trial
from vbd.search.kept.leaderboard import read_leaderboard
from vbd.search.space.dimensions import FamilySpace, canonical


@dataclass(frozen=True)
class Hint:
    """A trial of another run as a config of this search."""

    config: TrainConfig
    score: float
    share: float  # of this search's steps that it was trained for


@dataclass(frozen=True)
class WarmStart:
    """The scored trials of another run that lie inside the spaces of this search, best first."""

    run: str
    is_same_dataset: bool
    hints: tuple[Hint, ...]
    outside: int  # trials with a score that lie in none of the spaces

    def first(self, space: FamilySpace) -> list[TrainConfig]:
        """The best configs of a family, at most a quarter of its trials: what is run before anything is drawn."""
        mine = [hint.config for hint in self.hints if hint.config.detector == space.family]
        return mine[: max(1, space.trials // 4)]

    def within(self, spaces: Sequence[FamilySpace]) -> "WarmStart":
        """The part that concerns some families."""
        families = {space.family for space in spaces}
        return replace(self, hints=tuple(hint for hint in self.hints if hint.config.detector in families))

    def rank(self, config: TrainConfig) -> int:
        """The place of a config among the hints, whatever its seed and fold; after them when it is not there."""
        arms = [_arm(hint.config) for hint in self.hints]
        return arms.index(_arm(config)) if _arm(config) in arms else len(arms)

    def describe(self, searcher: Searcher) -> str:
        """What was found and what it is used for, on one line."""
        found = f"{self.run}: {len(self.hints)} of its {len(self.hints) + self.outside} scored configurations lie in this space"
        first = "the best of them are run first, at most a quarter of each family's trials"
        match searcher:
            case "random":
                return f"{found}; {first}"
            case "grid":
                return f"{found}; within each block they are run first, best first"
            case "optuna":
                told = "Optuna is told their scores"
                return f"{found}; {told if self.is_same_dataset else f'they are of another dataset, so {first}'}"
            case _:
                assert_never(searcher)


def read_warm_start(run: str, spaces: Sequence[FamilySpace], dataset: PreparedDataset) -> WarmStart:
    """What the leaderboard of a run holds for these spaces; raises InputError when the folder has none."""
    board = read_leaderboard(run)
    hints: dict[TrainConfig, Hint] = {}
    outside: set[TrainConfig] = set()
    for trial in board.trials:  # best first
        if math.isnan(trial.score):
            continue
        hint = _hint(trial, spaces)
        if hint is None:
            outside.add(trial.config)
        else:
            hints.setdefault(hint.config, hint)
    return WarmStart(run, board.dataset == dataset.fingerprint, tuple(hints.values()), len(outside))


def _hint(trial: Trial, spaces: Sequence[FamilySpace]) -> Hint | None:
    space = next((space for space in spaces if space.family == trial.config.detector), None)
    config = fitted(trial.config, space) if space else None
    if space is None or config is None:
        return None
    last = max([trial.steps, *(report["step"] for report in trial.history)])
    return Hint(config, trial.score, share=last / space.base.steps)


def fitted(config: TrainConfig, space: FamilySpace) -> TrainConfig | None:
    """The config at the steps, seed and fold of this search; None when it then lies outside the space.

    A warm-up that is varied keeps its share of the steps, a seed or a fold that is varied stays where it is one of them.
    """
    base = space.base
    copied = ("steps", "report_every", "warmup_steps", "seed", "fold")
    changes: dict[str, Any] = {name: getattr(base, name) for name in copied}
    varied = {dimension.name: dimension for dimension in space.dimensions}
    if "warmup_steps" in varied:
        changes["warmup_steps"] = round(config.warmup_steps * base.steps / config.steps)
    for name in ("seed", "fold"):
        if name in varied:
            own = getattr(config, name)
            changes[name] = own if varied[name].holds(own) else varied[name].ends[0]
    mine = canonical(replace(config, **changes), space.prepared_fusion)
    return None if space.values(mine) is None else mine


def _arm(config: TrainConfig) -> TrainConfig:
    return replace(config, seed=0, fold=0)
