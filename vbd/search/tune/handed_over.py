"""What Tune hands to the process of a trial."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vbd.config import train_config_from
from vbd.search.propose.proposal import Proposal


def proposal_of(drawn: dict[str, Any]) -> tuple[Proposal, int]:
    """The proposal and the number of the trial in what Tune hands to it."""
    values = drawn["proposal"]
    return Proposal(train_config_from(values["config"]), until=values["until"], hold=values["hold"]), values["number"]


@dataclass(frozen=True)
class Workers:
    """How many workers a trial has, what each takes of which nodes, and how often they may be started again."""

    number: int
    cpus: float
    gpus: float
    max_failures: int
    selector: Mapping[str, str] = field(default_factory=dict)  # labels of those nodes

    @property
    def each(self) -> dict[str, float]:
        """What one worker takes, as Ray calls it."""
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})
