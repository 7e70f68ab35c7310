"""What a search trains next, and who decides it."""

from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, assert_never

from vbd.config import SearchConfig, TrainConfig, finds_boxes
from vbd.data.prepared import PreparedDataset
from vbd.errors import InputError
from vbd.records import Trial
from vbd.search.space.draws import FamilySpace, block_of, draw_configs, draws_per_family, in_turn, spaces_of
from vbd.search.kept.trial import ENDED, trial_id_of
from vbd.search.propose.warm_start import WarmStart, read_warm_start


@dataclass(frozen=True)
class Proposal:
    """A trial to train, or to train further."""

    config: TrainConfig
    until: int  # steps to train to in this go; config.steps, but for populations
    hold: int = 0  # population: the checkpoint of this step is not pruned by the trial itself


class Proposer(Protocol):
    """Decides what is trained next from how trials ended."""

    @property
    def planned(self) -> Sequence[TrainConfig]:
        """The known trials and those to come, as they stood at the start; a searcher that draws later has placeholders."""

    @property
    def total(self) -> int:
        """Number of trials at the end of the search, known ones included."""

    @property
    def replaced(self) -> Mapping[str, str]:
        """Trials, by id, that are to train no further since others took their places, and why."""

    def propose(self) -> Proposal | None:
        """The next trial; None when there is none at the moment, or any more (see `is_done`)."""

    @property
    def is_done(self) -> bool:
        """Whether no proposal will ever come again."""

    def tell(self, trial: Trial) -> None:
        """A trial has ended, in whatever status; one that was known to have ended may be told again."""


class Listed:
    """Proposes a list: of the known trials those that have not ended, then what is not known yet."""

    def __init__(self, configs: Iterable[TrainConfig], known: Sequence[Trial] = ()) -> None:
        new = unknown(configs, known)
        self._waiting = deque([*unfinished(known), *new])
        self.planned = [*(trial.config for trial in known), *new]
        self.total = len(self.planned)

    def propose(self) -> Proposal | None:
        """The next of the list."""
        if not self._waiting:
            return None
        config = self._waiting.popleft()
        return Proposal(config, until=config.steps)

    @property
    def is_done(self) -> bool:
        """Whether the list has come to its end."""
        return not self._waiting

    @property
    def replaced(self) -> Mapping[str, str]:
        """None."""
        return {}

    def tell(self, trial: Trial) -> None:
        """How a trial ended changes nothing here."""


class Several:
    """Proposers of different families, which do not know of each other: one proposal of each in turn."""

    def __init__(self, proposers: Sequence[tuple[Collection[str], Proposer]]) -> None:
        self._proposers = deque(proposer for _, proposer in proposers)
        self._of_family = {family: proposer for families, proposer in proposers for family in families}

    @property
    def planned(self) -> Sequence[TrainConfig]:
        """Those of all, in turn."""
        return in_turn([proposer.planned for proposer in self._proposers])

    @property
    def total(self) -> int:
        """Trials of all of them."""
        return sum(proposer.total for proposer in self._proposers)

    def propose(self) -> Proposal | None:
        """The next trial of the first that has one; it comes last the next time."""
        for _ in range(len(self._proposers)):
            proposer = self._proposers[0]
            self._proposers.rotate(-1)
            proposal = None if proposer.is_done else proposer.propose()
            if proposal is not None:
                return proposal
        return None

    @property
    def is_done(self) -> bool:
        """Whether none will ever propose again."""
        return all(proposer.is_done for proposer in self._proposers)

    @property
    def replaced(self) -> Mapping[str, str]:
        """Those of all."""
        return {trial_id: why for proposer in self._proposers for trial_id, why in proposer.replaced.items()}

    def tell(self, trial: Trial) -> None:
        """Only who proposes its family hears of a trial."""
        if proposer := self._of_family.get(trial.config.detector):
            proposer.tell(trial)


def unknown(configs: Iterable[TrainConfig], known: Sequence[Trial]) -> list[TrainConfig]:
    """The configs that no known trial has."""
    there = {trial_id_of(trial.config) for trial in known}
    return [config for config in configs if trial_id_of(config) not in there]


def unfinished(known: Sequence[Trial]) -> list[TrainConfig]:
    """The configs of trials that were cut off, in the order in which they were drawn."""
    return [trial.config for trial in sorted(known, key=lambda trial: trial.number) if trial.status not in ENDED]


def build_proposer(search: SearchConfig, dataset: PreparedDataset, known: Sequence[Trial] = ()) -> Proposer:
    """The proposer that a search asks for, which goes on from the known trials; prints what a warm start brought.

    Raises InputError for a space that cannot be drawn from, or a warm start that is none.
    """
    if search.scheduler == "population":
        if search.warm_start:
            raise InputError(f"--warm-start {search.warm_start}: a population draws its members anew; leave it out")
        from vbd.search.propose.population import Population

        return Population(search, known, dataset=dataset)
    spaces = spaces_of(search, dataset)
    warm = read_warm_start(search.warm_start, spaces, dataset) if search.warm_start else None
    if warm:
        print(warm.describe(search.searcher), flush=True)
    match search.searcher:
        case "random":
            return Listed(_random(search, spaces, known, warm), known)
        case "grid":
            configs = draw_configs(search, dataset)
            return Listed(sorted(configs, key=lambda c: (block_of(c), warm.rank(c))) if warm else configs, known)
        case "optuna":
            return _optuna(search, spaces, known, warm)
        case _:
            assert_never(search.searcher)


def _optuna(
    search: SearchConfig, spaces: Sequence[FamilySpace], known: Sequence[Trial], warm: WarmStart | None
) -> Proposer:
    """Detectors compete for trials by their scores; a classifier's score is another, so it gets its own trials alone."""
    from vbd.search.propose.tpe import OptunaProposer

    kinds = {of_boxes: [s for s in spaces if finds_boxes(s.family) == of_boxes] for of_boxes in (True, False)}
    proposers, outside = [], 0
    for of_boxes, kind in kinds.items():
        if not kind:
            continue
        # Trials of a kind that this search has no family of stay on the list: the other kind's proposer counts them.
        mine = [trial for trial in known if finds_boxes(trial.config.detector) == of_boxes or not kinds[not of_boxes]]
        proposer = OptunaProposer(kind, mine, seed=search.seed, warm=warm and warm.within(kind))
        proposers.append((frozenset(space.family for space in kind), proposer))
        outside += proposer.outside
    if outside:
        print(f"{outside} of {len(known)} known trials lie outside this space: Optuna does not use them")
    return proposers[0][1] if len(proposers) == 1 else Several(proposers)


def _random(
    search: SearchConfig, spaces: Sequence[FamilySpace], known: Sequence[Trial], warm: WarmStart | None
) -> list[TrainConfig]:
    """Of each family the best of a warm start and then draws, up to its number of trials, known ones in its space included."""
    per_family = []
    for space, draws in zip(spaces, draws_per_family(search, spaces, None), strict=True):
        wanted = dict.fromkeys([*(warm.first(space) if warm else ()), *draws])
        count = sum(space.holds(trial.config) for trial in known)
        left_out = unknown(wanted, known)[max(0, space.trials - count) :]
        per_family.append([config for config in wanted if config not in left_out])  # known ones keep their places
    return in_turn(per_family)
