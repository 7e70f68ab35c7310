"""Population-based training (Jaderberg et al. 2017): a schedule of augmentation strength and learning rate, found in one run.

All members of a family train to the end of a generation. Then the worst quarter is replaced: a child goes on from the
checkpoint of one of the best quarter, as its whole config with another strength and learning rate from that step on. What
a generation decides is a function of the reports at its end, so neither the order in which members end nor a restart of
the search changes it, and a child's config trained from scratch gives the child's weights.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from vbd.config import SearchConfig, TrainConfig
from vbd.config.phases import rate_at, strength_at, until, with_phase
from vbd.data.prepared import PreparedDataset
from vbd.errors import InputError
from vbd.evaluation.score import SCORE
from vbd.hashing import stable_hash
from vbd.records import Trial
from vbd.search.kept.keep import best_of_families
from vbd.search.kept.trial import ENDED, trial_id_of
from vbd.search.propose.proposal import Proposal, unknown
from vbd.search.space.dimensions import Dimension, FamilySpace
from vbd.search.space.draws import draws_per_family, spaces_of

# What a child's strength and rate are multiplied by, and how often its strength is drawn from the space instead.
_FACTORS, _ANEW = (0.8, 1.2), 0.25
# Draws of a child that none of its generation equals.
_TRIES = 100
# Trials that train no further, wherever they came to.
_GONE = ("failed", "refused", "stopped", "died")
# Trials that another session tries again.
_INTERRUPTED = ("running", "unfinished", "died")


class Population:
    """Proposes what the members of each family's generation have still to train; families do not wait for each other."""

    def __init__(self, search: SearchConfig, known: Sequence[Trial], *, dataset: PreparedDataset | None = None) -> None:
        """`known` are the trials of earlier sessions. Raises InputError for a space that no population can be drawn from."""
        self._families = _families(search, dataset)
        members = [config for family in self._families for config in family.members.values()]
        self.planned = [*(trial.config for trial in known), *unknown(members, known)]
        ended = [trial for trial in known if trial.status in ENDED]
        others = sum(not any(family.has(trial.config) for family in self._families) for trial in ended)
        self.total = sum(family.most_trials for family in self._families) + others
        lost = {trial_id for family in self._families for trial_id in family.given_up(known)}
        self._trials = {trial.trial_id: _taken_up(trial, is_lost=trial.trial_id in lost) for trial in known}
        self._running: set[str] = set()
        self._advance()

    def propose(self) -> Proposal | None:
        """The next member to train to the end of its generation; None while those that run decide what comes next."""
        open_places = [
            (family.urgency(trial_id, self._trials), place, number, trial_id)
            for number, family in enumerate(self._families)
            for place, trial_id in enumerate(family.open(self._trials))
            if trial_id not in self._running
        ]
        if not open_places:
            return None
        *_, number, trial_id = min(open_places)
        self._running.add(trial_id)
        family = self._families[number]
        return Proposal(family.members[trial_id], until=family.end, hold=family.start)

    @property
    def is_done(self) -> bool:
        """Whether every family has come to the end of its last generation."""
        return not any(family.open(self._trials) for family in self._families)

    def tell(self, trial: Trial) -> None:
        """A member has come to the end of its generation ("waiting", "finished"), or will not."""
        self._trials[trial.trial_id] = trial
        self._running.discard(trial.trial_id)
        self._advance()

    @property
    def replaced(self) -> dict[str, str]:
        """Members that a child took the place of, by trial id, and how that came; they train no further."""
        return {trial_id: why for family in self._families for trial_id, why in family.replaced.items()}

    def _advance(self) -> None:
        for family in self._families:
            family.advance(self._trials)


class _Family:
    """The members of one family, each in its place, and the generation that they train."""

    def __init__(self, space: FamilySpace, first: Sequence[TrainConfig], *, share: float, seed: int) -> None:
        self._space, self._seed = space, seed
        self._bounds = (0, *generation_ends(space.base, share))
        self._number = 0  # of the generation
        self._first = {trial_id_of(config) for config in first}
        self.members = {trial_id_of(config): config for config in first}
        self.replaced: dict[str, str] = {}

    @property
    def start(self) -> int:
        """The step at which the generation begins."""
        return self._bounds[self._number]

    @property
    def end(self) -> int:
        """The step at which the generation ends."""
        return self._bounds[self._number + 1]

    @property
    def ends(self) -> tuple[int, ...]:
        """Where each generation ends, in steps."""
        return self._bounds[1:]

    @property
    def most_trials(self) -> int:
        """Members and all children that there can be."""
        return len(self.members) + replaced_of(len(self.members)) * (len(self.ends) - 1)

    @property
    def line(self) -> str:
        """The population in words."""
        members, ends = len(self.members), self.ends
        steps = ", ".join(f"{end:,}" for end in ends)
        return (
            f"{self._space.family}: {members} members, {len(ends)} generations, to steps {steps}; after each but the last "
            f"the worst {replaced_of(members)} are replaced, {self.most_trials} trials at most"
        )

    def open(self, trials: Mapping[str, Trial]) -> list[str]:
        """The members that have not come to the end of the generation and may still do so."""
        return [
            trial_id
            for trial_id in self.members
            if trial_id not in trials
            or (_report_at(trials[trial_id], self.end) is None and trials[trial_id].status not in _GONE)
        ]

    def has(self, config: TrainConfig) -> bool:
        """Whether a config is one of its first members, or descends from one."""
        return trial_id_of(until(config, 0)) in self._first

    def urgency(self, trial_id: str, trials: Mapping[str, Trial]) -> int:
        """Children first, which need a checkpoint that their parent keeps for this generation; then what was interrupted."""
        if self.start and self.members[trial_id].phase_steps[-1:] == (self.start,):
            return 0
        return 1 if trial_id in trials and trials[trial_id].status == "running" else 2

    def given_up(self, known: Iterable[Trial]) -> set[str]:
        """Of an earlier session's trials, those that others of the family did not wait for: they had died for good."""
        mine = [trial for trial in known if self.has(trial.config)]
        decided = max(map(_decided, mine), default=0)
        came_to = {t.trial_id: max(_last_step(t), *t.config.phase_steps, 0) for t in mine if t.status in _INTERRUPTED}
        return {trial_id for trial_id, step in came_to.items() if any(step < end <= decided for end in self.ends)}

    def advance(self, trials: Mapping[str, Trial]) -> None:
        """On to the generation that some member has still to train, or to the last."""
        while self.end != self.ends[-1] and not self.open(trials):
            self._replace_worst(trials)
            self._number += 1

    def _replace_worst(self, trials: Mapping[str, Trial]) -> None:
        order = sorted(self.members, key=lambda trial_id: _worth(trials[trial_id], self.end), reverse=True)
        count = replaced_of(len(order))
        parents = [trial_id for trial_id in order[:count] if _report_at(trials[trial_id], self.end) is not None]
        worst = set(order[len(order) - count :])
        members: dict[str, TrainConfig] = {}
        for place, (trial_id, config) in enumerate(self.members.items()):
            child = self._child(place, parents, members.values()) if parents and trial_id in worst else None
            if child is None:
                members[trial_id] = config
                continue
            members[trial_id_of(child)] = child
            if trials[trial_id].status not in ("failed", "refused", "died"):
                parent = trial_id_of(until(child, self.end))
                self.replaced[trial_id] = f"population: a child of {parent} took its place at step {self.end}"
        self.members = members

    def _child(self, place: int, parents: list[str], others: Iterable[TrainConfig]) -> TrainConfig | None:
        """A child for this place that no other equals; None where so few parents have no more to give."""
        rng = np.random.default_rng([self._seed, stable_hash(self._space.family), self._number, place])
        strengths = next((d for d in self._space.dimensions if d.name == "strength"), None)
        taken = set(others)
        for _ in range(_TRIES):
            parent = self.members[parents[rng.integers(len(parents))]]
            child = _changed(parent, self.end, strengths, rng)
            if child not in taken:
                return child
        return None


def _families(search: SearchConfig, dataset: PreparedDataset | None) -> list[_Family]:
    spaces = spaces_of(search, dataset)
    where = f"preset {search.preset}"
    if not 0 < search.generation_share <= 1:
        raise InputError(f"{where}: generation_share is {search.generation_share}; want more than 0 and at most 1")
    for space in spaces:
        if space.base.phase_steps:
            raise InputError(f"{where}: {space.family}: phase_steps are what a population finds; leave them empty")
        if any(dimension.name == "fold" and len(set(dimension.ends)) > 1 for dimension in space.dimensions):
            raise InputError(
                f"{where}: {space.family}: fold cannot be varied in a population: its members are compared with each "
                "other; choose one fold"
            )
    first = draws_per_family(replace(search, searcher="random"), spaces, dataset)
    return [
        _Family(space, configs, share=search.generation_share, seed=search.seed)
        for space, configs in zip(spaces, first, strict=True)
    ]


def generation_ends(config: TrainConfig, share: float) -> tuple[int, ...]:
    """The steps at which generations of a share of the steps end: at reports, the last at the last step."""
    reports = {round(number * share * config.steps / config.report_every) for number in range(1, 1 + round(1 / share))}
    steps = {count * config.report_every for count in reports}
    return (*sorted(step for step in steps if 0 < step < config.steps), config.steps)


def replaced_of(members: int) -> int:
    """How many members a generation replaces: a quarter, but one where there is one to learn from."""
    return max(members // 4, 1) if members > 1 else 0


def _changed(parent: TrainConfig, step: int, strengths: Dimension | None, rng: np.random.Generator) -> TrainConfig:
    """A parent's config with another rate from a step on and, unless it is of policy A, another strength."""
    rate = rate_at(step, parent) * _FACTORS[rng.integers(2)]
    strength = strength_at(step, parent)
    if parent.policy != "A":
        if strengths is not None and rng.random() < _ANEW:
            values = strengths.values
            strength = values[rng.integers(len(values))] if values else strengths.at(rng.random())
        else:
            strength = min(1.0, strength * _FACTORS[rng.integers(2)])
    return with_phase(parent, step, strength=_rounded(strength), rate=_rounded(rate))


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


# ------------------------------------------------------------------------------------------- what a trial has come to


def _report_at(trial: Trial, step: int) -> dict[str, object] | None:
    return next((report for report in trial.history if report["step"] == step), None)


def _last_step(trial: Trial) -> int:
    return max((int(report["step"]) for report in trial.history), default=0)


def _worth(trial: Trial, step: int) -> tuple[bool, float]:
    """To compare members by at the end of a generation: who did not come so far is the worst, who has no score the next."""
    report = _report_at(trial, step)
    score = report[SCORE] if report else None
    return report is not None, score if isinstance(score, float | int) and score == score else -1.0


def _decided(trial: Trial) -> int:
    """The step up to which a trial shows that its family had come to an end of generations."""
    last = _last_step(trial)
    return max(last if trial.status == "stopped" else last - 1, *trial.config.phase_steps, 0)


def _taken_up(trial: Trial, *, is_lost: bool) -> Trial:
    """A trial of an earlier session: one that was interrupted, or whose process died, is tried again unless it is lost."""
    return replace(trial, status="died" if is_lost else "running") if trial.status in _INTERRUPTED else trial


# ----------------------------------------------------------------------------------------------------------- in words


def describe_population(search: SearchConfig, dataset: PreparedDataset | None = None) -> str:
    """The population of each family, on a line of its own: members, where generations end, how many are replaced."""
    return "\n".join(family.line for family in _families(search, dataset))


def describe_schedules(trials: Sequence[Trial]) -> str:
    """What a population came to: the schedule of the best trial of each family, on a line of its own."""
    best = best_of_families(trials, per_family=1).values()
    return "\n".join(f"{trial.config.detector}: best {trial.trial_id}, {schedule_of(trial, trials)}" for trial in best)


def schedule_of(trial: Trial, trials: Iterable[Trial] = ()) -> str:
    """The strengths of a trial to its last report, and which of `trials` it inherited them from.

    As in `0.30 to step 120 in 1f0c3b2a9d, 0.36 (rate x 0.8) to 240`; a trial of policy A has rates alone.
    """
    names = {found.trial_id for found in trials}
    config, last = trial.config, _last_step(trial) or trial.config.steps
    bounds = (0, *(step for step in config.phase_steps if step < last), last)
    parts: list[str] = []
    for start, end in pairwise(bounds):
        rate = rate_at(start, config)
        told = f"rate x {rate:g}" if config.policy == "A" else f"{strength_at(start, config):.2f}"
        if rate != 1 and config.policy != "A":
            told += f" (rate x {rate:g})"
        ancestor = trial_id_of(until(config, end))
        whose = f" in {ancestor}" if ancestor in names and ancestor != trial.trial_id else ""
        parts.append(f"{told} to {'' if parts else 'step '}{end}{whose}")
    return ", ".join(parts)
