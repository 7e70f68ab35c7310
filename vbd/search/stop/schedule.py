"""Early stopping that is fair to slow learners: a trial is compared with trials of its own detector family only."""

from collections.abc import Callable, Sequence
from typing import Any, assert_never

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from vbd.config import SearchConfig
from vbd.evaluation.score import SCORE
from vbd.records import Trial
from vbd.search.kept.trial import trial_id_of
from vbd.search.stop.halving import RungsOfAll
from vbd.search.tune.handed_over import proposal_of

# Told of a trial, as Tune knows it, that is to be stopped, and why.
OnStop = Callable[[Any, str], None]


def build_scheduler(search: SearchConfig, known: Sequence[Trial], *, on_stop: OnStop) -> TrialScheduler:
    """The scheduler that a search asks for; trials start first come, first served, whichever it is.

    `known` are the trials of earlier sessions. `on_stop` is called before a trial's process is ended.
    """
    match search.scheduler:
        case "fifo" | "population":  # a population's trials end by themselves, and their proposer says who goes on
            return FIFOScheduler()
        case "halving":
            return PerFamilyHalving(search, known, on_stop=on_stop)
        case _:
            assert_never(search.scheduler)


class PerFamilyHalving(FIFOScheduler):
    """Successive halving with rungs of their own for each family, and each number of steps.

    Learning rates fall over the whole of a run: at the same step a longer one stands worse than it will end.
    """

    def __init__(self, search: SearchConfig, known: Sequence[Trial], *, on_stop: OnStop):
        super().__init__()
        self._on_stop = on_stop
        self._rungs = RungsOfAll(search, known)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Called by Tune at each report. What a trial says as it fails is no score, and a last step is nothing to save."""
        if "failed" in result or "fault" in result:
            return TrialScheduler.CONTINUE
        config = proposal_of(trial.config)[0].config
        verdict = self._rungs.of(config).record(trial_id_of(config), result["step"], result[SCORE])
        if verdict.go_on or result["step"] >= config.steps:
            return TrialScheduler.CONTINUE
        self._on_stop(trial, verdict.reason)
        return TrialScheduler.STOP
