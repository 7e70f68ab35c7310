"""Optuna's tree-structured Parzen estimator as a proposer: asked for configs and told how they did, in memory alone.

A family is drawn first, then the fields of that family that mean something beside what is drawn already. What Optuna knows
is rebuilt from the known trials at each start, so nothing of it has to be kept.
"""

import math
import warnings
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vbd.config import TrainConfig
from vbd.records import Trial
from vbd.search.kept.trial import ENDED, trial_id_of
from vbd.search.propose.proposal import Proposal, unfinished, unknown
from vbd.search.propose.warm_start import WarmStart
from vbd.search.space.dimensions import Dimension, FamilySpace, in_order, is_asked
from vbd.search.space.draws import in_turn, random_draws

if TYPE_CHECKING:
    import optuna

# Draws of what is known already, before a config that is not is drawn at random.
_TRIES = 20
# Stopped trials are compared by how far they came, families of other steps with each other too: in thousandths.
_THOUSANDTHS = 1000


@dataclass(frozen=True)
class Outcome:
    """How a trial ended, to a sampler: NaN when it has no score, a share below 1 when it was stopped early."""

    score: float
    share: float = 1.0


class OptunaProposer:
    """Proposes what TPE draws; of each family's trials half are for it alone, the others go where the scores lead."""

    def __init__(
        self,
        spaces: Sequence[FamilySpace],
        known: Sequence[Trial] = (),
        *,
        seed: int,
        warm: WarmStart | None = None,
    ) -> None:
        """`known` are the trials of earlier sessions: those that were cut off are proposed first, the others told."""
        self._spaces: dict[str, FamilySpace] = {space.family: space for space in spaces}
        self._study = _study([seed, len(known)])
        self._seed = seed
        inside = [trial for trial in known if self._params(trial.config) is not None]
        # Trials that count towards the number of trials of this space.
        self._family_of: dict[str, str] = {trial_id_of(trial.config): trial.config.detector for trial in inside}
        self.outside = len(known) - len(inside)  # trials of an extended search that Optuna cannot use
        draws: dict[str, list[TrainConfig]] = {
            space.family: random_draws(space, space.trials, seed=seed) for space in spaces
        }
        self._trials_of = {family: len(configs) for family, configs in draws.items()}  # a small space holds fewer
        self._most = max(len(inside), sum(self._trials_of.values()))
        self.planned = [*(trial.config for trial in known), *self._placeholders(draws, known)]
        self._ended: dict[str, Outcome] = {}
        self._asked: dict[str, list[optuna.Trial]] = {}  # draws that wait for an outcome
        self._resumed = deque(unfinished(known))
        is_other = warm is not None and not warm.is_same_dataset
        self._first = deque(config for space in spaces if warm and is_other for config in warm.first(space))
        for hint in warm.hints if warm and warm.is_same_dataset else ():
            self._add(hint.config, Outcome(hint.score, hint.share))
        for trial in known:
            if trial.status in ENDED:
                self.tell(trial)

    def _placeholders(self, draws: Mapping[str, Sequence[TrainConfig]], known: Sequence[Trial]) -> list[TrainConfig]:
        """As many draws as there are trials to come: of each family what it lacks, at most what all families lack."""
        counts = Counter(self._family_of.values())
        lacking = [
            unknown(configs, known)[: max(0, self._trials_of[family] - counts[family])]
            for family, configs in draws.items()
        ]
        return in_turn(lacking)[: self._most - len(self._family_of)]

    @property
    def total(self) -> int:
        """Number of trials at the end of the search, those outside its space included."""
        return self.outside + self._most

    def propose(self) -> Proposal | None:
        """The next trial: what was cut off, then what a warm start brought, then what Optuna draws."""
        config = self._resumed.popleft() if self._resumed else self._next()
        if config is None:
            return None
        params = self._params(config)
        if params is not None:
            self._family_of[trial_id_of(config)] = config.detector
            if trial_id_of(config) not in self._asked:
                self._asked[trial_id_of(config)] = [self._ask(params)[0]]
        return Proposal(config, until=config.steps)

    @property
    def is_done(self) -> bool:
        """Whether the number of trials is reached, or the space holds no more."""
        return not self._resumed and len(self._family_of) >= self._most

    @property
    def replaced(self) -> Mapping[str, str]:
        """None."""
        return {}

    def tell(self, trial: Trial) -> None:
        """Passes on how a trial ended, once, and to all draws of its config."""
        trial_id = trial_id_of(trial.config)
        if trial_id in self._ended or self._params(trial.config) is None:
            return
        self._family_of[trial_id] = trial.config.detector
        outcome = self._ended[trial_id] = _outcome_of(trial)
        draws = self._asked.pop(trial_id, [])
        for draw in draws:
            self._conclude(draw, outcome)
        if not draws:
            self._add(trial.config, outcome)

    # -------------------------------------------------------------------------------------------------------- asking

    def _next(self) -> TrainConfig | None:
        """A config that is not known yet; None when there is none."""
        if self.is_done:
            return None
        while self._first:
            config = self._first.popleft()
            if trial_id_of(config) not in self._family_of:
                return config
        return self._drawn() or self._left()

    def _drawn(self) -> TrainConfig | None:
        """What Optuna draws; what it drew before is told again, or is told with the one that is being trained."""
        for _ in range(_TRIES):
            draw, config = self._ask(self._owed())
            trial_id = trial_id_of(config)
            if trial_id in self._ended:
                self._conclude(draw, self._ended[trial_id])
                continue
            self._asked.setdefault(trial_id, []).append(draw)
            if trial_id not in self._family_of:
                return config
        return None

    def _left(self) -> TrainConfig | None:
        """A config at random of the family with the fewest trials that has one left."""
        counts = Counter(self._family_of.values())
        for space in sorted(self._spaces.values(), key=lambda space: counts[space.family]):
            for config in random_draws(space, counts[space.family] + 1, seed=self._seed):
                if trial_id_of(config) not in self._family_of:
                    return config
        self._most = len(self._family_of)  # the space holds no more
        return None

    def _owed(self) -> dict[str, Any]:
        """The family that lacks most of the half of its trials that no other may take, if there is one."""
        counts: Counter[str] = Counter(self._family_of.values())
        owed = {family: -(-trials // 2) - counts[family] for family, trials in self._trials_of.items()}
        most = max(owed, key=lambda family: owed[family])
        return {"family": most} if owed[most] > 0 else {}

    def _ask(self, fixed: dict[str, Any]) -> "tuple[optuna.Trial, TrainConfig]":
        if fixed:
            self._study.enqueue_trial(fixed)
        draw = self._study.ask()
        space = self._spaces[draw.suggest_categorical("family", list(self._spaces))]
        values: dict[str, Any] = {}
        for dimension in in_order(space.dimensions):
            if is_asked(dimension.name, values, space.base):
                values[dimension.name] = _suggest(draw, _name(space, dimension), dimension)
        return draw, space.config(values)

    # ------------------------------------------------------------------------------------------------------- telling

    def _params(self, config: TrainConfig) -> dict[str, Any] | None:
        """What Optuna would have drawn for a config; None when it lies outside the space."""
        space = self._spaces.get(config.detector)
        values = space.values(config) if space else None
        if space is None or values is None:
            return None
        varied = {d.name: d for d in space.dimensions}
        places = {_name(space, varied[name]): _place(varied[name], value) for name, value in values.items()}
        return {"family": space.family} | places

    def _conclude(self, draw: "optuna.Trial", outcome: Outcome) -> None:
        from optuna.trial import TrialState

        if math.isnan(outcome.score):
            self._study.tell(draw, state=TrialState.FAIL)
        elif outcome.share < 1:
            draw.report(outcome.score, _step(outcome))
            self._study.tell(draw, state=TrialState.PRUNED)
        else:
            self._study.tell(draw, outcome.score)

    def _add(self, config: TrainConfig, outcome: Outcome) -> None:
        """Tells Optuna of a config that it did not draw."""
        from optuna.distributions import CategoricalDistribution
        from optuna.trial import TrialState, create_trial

        params = self._params(config)
        if params is None or math.isnan(outcome.score):
            return
        space = self._spaces[config.detector]
        all_of_them = {_name(space, dimension): _distribution(dimension) for dimension in space.dimensions}
        all_of_them["family"] = CategoricalDistribution(list(self._spaces))
        is_whole = outcome.share >= 1
        self._study.add_trial(
            create_trial(
                state=TrialState.COMPLETE if is_whole else TrialState.PRUNED,
                value=outcome.score,
                params=params,
                distributions={name: all_of_them[name] for name in params},
                intermediate_values={} if is_whole else {_step(outcome): outcome.score},
            )
        )


def _study(seed: list[int]) -> "optuna.Study":
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)  # else a line for each trial
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(
            multivariate=True,
            group=True,  # each family's fields on their own
            constant_liar=True,  # what is being trained counts as bad, so that the next draws lie elsewhere
            seed=int(np.random.SeedSequence(seed).generate_state(1)[0]),
        )
    return optuna.create_study(direction="maximize", sampler=sampler)


def _name(space: FamilySpace, dimension: Dimension) -> str:
    return f"{space.family}/{dimension.name}"


def _distribution(dimension: Dimension) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if dimension.values:
        return CategoricalDistribution(list(range(len(dimension.values))))
    if dimension.is_whole:
        return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.low > 0)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.low > 0)


def _suggest(draw: "optuna.Trial", name: str, dimension: Dimension) -> Any:
    """A value of a dimension; values to choose from by their places, because Optuna knows no tuples."""
    is_log = dimension.low > 0
    if dimension.values:
        return dimension.values[draw.suggest_categorical(name, list(range(len(dimension.values))))]
    if dimension.is_whole:
        return dimension.rounded(draw.suggest_int(name, int(dimension.low), int(dimension.high), log=is_log))
    return dimension.rounded(draw.suggest_float(name, dimension.low, dimension.high, log=is_log))


def _place(dimension: Dimension, value: Any) -> Any:
    """The inverse of `_suggest`."""
    return dimension.values.index(value) if dimension.values else value


def _step(outcome: Outcome) -> int:
    return round(_THOUSANDTHS * outcome.share)


def _outcome_of(trial: Trial) -> Outcome:
    match trial.status:
        case "finished":
            return Outcome(trial.score)
        case "stopped":
            last = max([trial.steps, *(report["step"] for report in trial.history)])
            return Outcome(trial.score, share=last / trial.config.steps)
        case _:
            return Outcome(math.nan)
