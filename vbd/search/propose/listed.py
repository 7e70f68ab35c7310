"""Proposers without a model: a list of configurations, and several proposers in turn."""

from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence

from vbd.config import TrainConfig
from vbd.records import Trial
from vbd.search.propose.proposal import Proposal, Proposer, unfinished, unknown
from vbd.search.space.draws import in_turn


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
