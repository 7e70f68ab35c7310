"""Early stopping that is fair to slow learners: a trial is compared with trials of its own detector family only."""

from typing import Any, assert_never

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from vbd.config import SearchConfig
from vbd.search.space import trial_config

METRIC = "map_40_findings"


def build_scheduler(search: SearchConfig) -> TrialScheduler:
    """The scheduler that a search asks for."""
    match search.scheduler:
        case "fifo":
            return FIFOScheduler()
        case "halving":
            return PerFamilyHalving(search)
        case _:
            assert_never(search.scheduler)


class PerFamilyHalving(FIFOScheduler):
    """Asynchronous successive halving (Li et al. 2020), with rungs of their own for each family.

    Trials start first come, first served; only the decision to stop one is the family's.
    """

    def __init__(self, search: SearchConfig):
        super().__init__()
        self._search = search
        self._families: dict[str, AsyncHyperBandScheduler] = {
            candidate.base.detector: AsyncHyperBandScheduler(
                time_attr="step",
                max_t=candidate.base.steps,
                grace_period=max(1, int(search.grace_share * candidate.base.steps)),
                reduction_factor=search.reduction,
            )
            for candidate in search.candidates
        }

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Called by Tune once; every family gets the same metric."""
        return all(family.set_search_properties(metric, mode, **spec) for family in self._families.values())

    def _family(self, trial: Any) -> AsyncHyperBandScheduler:
        return self._families[trial_config(self._search, trial.config).detector]

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        self._family(trial).on_trial_add(tune_controller, trial)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        self._family(trial).on_trial_error(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        return self._family(trial).on_trial_result(tune_controller, trial, result)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        self._family(trial).on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        self._family(trial).on_trial_remove(tune_controller, trial)

    def debug_string(self) -> str:
        return "; ".join(f"{name}: {family.debug_string()}" for name, family in self._families.items())
