"""The contract of a proposer: what it proposes, and what it is asked and told."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from vbd.config import TrainConfig
from vbd.records import Trial
from vbd.search.kept.trial import ENDED, trial_id_of


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


def unknown(configs: Iterable[TrainConfig], known: Sequence[Trial]) -> list[TrainConfig]:
    """The configs that no known trial has."""
    there = {trial_id_of(trial.config) for trial in known}
    return [config for config in configs if trial_id_of(config) not in there]


def unfinished(known: Sequence[Trial]) -> list[TrainConfig]:
    """The configs of trials that were cut off, in the order in which they were drawn."""
    return [trial.config for trial in sorted(known, key=lambda trial: trial.number) if trial.status not in ENDED]
