"""Between Ray Tune and what decides: Tune asks here for trials, and reports here how they ended."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from ray.tune.search import Searcher

from vbd import storage
from vbd.config import TrainConfig
from vbd.errors import InputError, StoreError
from vbd.evaluation.score import SCORE
from vbd.records import Trial
from vbd.search.kept.trial import ENDED, TrialFolder, trial_id_of
from vbd.search.propose.proposal import Proposer

T = TypeVar("T")


class ProposalSearcher(Searcher):
    """Hands Tune the proposals, and tells the proposer how trials ended.

    Nothing of it outlives the driver: the run folder does.
    """

    def __init__(
        self,
        proposer: Proposer,
        run: str,
        known: Sequence[Trial],
        on_end: Callable[[Trial], object],
        *,
        max_failures: int = 0,
        ahead: Callable[[], float] | None = None,
    ):
        """`on_end` is called with each trial that has ended, after the proposer; `ahead` returns how many trials may be
        pending and running together (default: any number).
        """
        # Returns the failed trial of a config, by its number, that cannot be trained here; None of others.
        self.fail_at_once: Callable[[TrainConfig, int], Trial | None] = lambda config, number: None
        super().__init__(metric=SCORE, mode="max")
        self._proposer, self._run, self._on_end, self._max_failures = proposer, run, on_end, max_failures
        self._replaced = {trial.trial_id for trial in known if trial.status == "stopped"}
        self._numbers = {trial.trial_id: trial.number for trial in known}
        self._ahead = ahead
        self._running: dict[str, str] = {}  # ours by Tune's
        self.started = 0  # trials that were handed out
        self._told: dict[str, str] = {}  # the fault that a trial's last report told, by ours
        # What ended a trial, again and again, that lies in its surroundings: a dataset or a store that is gone.
        self.fault: InputError | None = None

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict, **spec: Any) -> bool:
        """Called by Tune, which knows no more than we do."""
        return True

    @property
    def is_busy(self) -> bool:
        """Whether trials that were handed out have not ended."""
        return bool(self._running)

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial, None to be asked again later, or that there will be no more."""
        if self._ahead is not None and len(self._running) >= self._ahead():
            return None
        while not self._proposer.is_done and self.fault is None:
            proposal = self._proposer.propose()
            if proposal is None:
                return None
            ours = trial_id_of(proposal.config)
            number = self._numbers.setdefault(ours, max(self._numbers.values(), default=-1) + 1)
            if failed := self.reach(functools.partial(self.fail_at_once, proposal.config, number)):
                self._conclude(failed)
                continue
            self.started += 1
            self._running[trial_id] = ours
            return {"proposal": dataclasses.asdict(proposal) | {"number": number}}
        return Searcher.FINISHED

    def folder_of(self, config: TrainConfig) -> TrialFolder:
        """The folder of a config's trial."""
        return TrialFolder(self._run, trial_id_of(config))

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Remembers what an attempt ended with, so long as no later one reports anything else."""
        if trial_id in self._running:
            self._told[self._running[trial_id]] = result.get("fault", "")

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """A trial has ended: what it came to stands in its folder."""
        ours = self._running.get(trial_id, "")
        if error and self._told.get(ours):
            self.fault = self.fault or InputError(self._told[ours])
        trial = self.reach(lambda: self._outcome(ours, error=error)) if ours else None
        if self.fault is not None:
            return  # it counts as running still: a search that is mended goes on with it
        self._running.pop(trial_id, None)
        if trial is not None:
            self._conclude(trial)

    def _conclude(self, trial: Trial) -> None:
        self._proposer.tell(trial)
        self.reach(lambda: self._on_end(trial))
        for loser, why in self._proposer.replaced.items():
            if loser not in self._replaced:
                self._replaced.add(loser)
                self._replace(TrialFolder(self._run, loser), why)

    def _outcome(self, ours: str, *, error: bool) -> Trial | None:
        folder = TrialFolder(self._run, ours)
        trial = folder.read()
        if trial is None or not error or trial.status in ENDED or self.fault is not None:
            return trial
        return folder.lose(f"its process died {1 + self._max_failures} time(s)")

    def _replace(self, loser: TrialFolder, why: str) -> None:
        self.reach(lambda: self._on_end(loser.stop(why)))

    def reach(self, action: Callable[[], T]) -> T | None:
        """What `action` on the run folder returns, tried again for a while; None when it fails still: the search ends."""
        seconds = storage.PATIENCE_SECONDS if self.fault is None else 0
        try:
            return storage.patiently(action, seconds=seconds, say=lambda text: print(text, flush=True))
        except StoreError as error:
            self.fault = self.fault or error
            return None

    def save(self, checkpoint_path: str) -> None:
        """Tune keeps what it saves for a restart of its own; ours begins with the run folder."""

    def restore(self, checkpoint_path: str) -> None:
        """See `save`."""
