"""Between Ray Tune and what decides: Tune asks us for trials, and runs each as a plain function on one device."""

import dataclasses
import functools
import logging
import math
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray import tune
from ray.tune.result import TIMESTEPS_TOTAL
from ray.tune.search import Searcher

from vbd import storage
from vbd.cluster.nodes import on_host
from vbd.config import RunOptions, TrainConfig, train_config_from
from vbd.data.prepared import open_dataset
from vbd.errors import InputError, StoreError, interruption_within
from vbd.evaluation.score import SCORE
from vbd.records import Trial
from vbd.search.tune.metrics import TrialMetrics
from vbd.search.propose.build import Proposal, Proposer
from vbd.search.kept.trial import ENDED, TrialFolder, trial_id_of
from vbd.training.checkpoint import read_info
from vbd.training.loop import TrainingError, train
from vbd.training.memory import forget_peak
from vbd.training.recurrence import returned
from vbd.cluster.versions import check_versions

T = TypeVar("T")


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


def run_trial(
    drawn: dict[str, Any], *, location: str, run: str, options: RunOptions, workers: Workers | None = None
) -> None:
    """One trial, in a Ray worker. What no second attempt would mend is reported as failed; the rest is raised and retried.

    With `workers` this process computes nothing: they train it together.
    """
    logging.getLogger("ray.train._internal.storage").setLevel(logging.WARNING)  # a line for every checkpoint
    silence_exits()
    try:
        check_versions()
        _run_trial(drawn, location, run, options, workers)
    except InputError as error:
        tune.report({SCORE: math.nan, "fault": str(error)})  # Tune keeps no error that the driver could read
        raise


@functools.cache
def silence_exits() -> None:
    """From now on Python does not print an exit that it cannot raise; once for a process that runs trial after trial.

    Ray ends a worker by an exception that its handler of SIGTERM raises wherever the process happens to be.
    """
    former = sys.unraisablehook

    def tell(fault: "sys.UnraisableHookArgs") -> None:
        if not isinstance(interruption_within(fault.exc_value), SystemExit):
            former(fault)

    sys.unraisablehook = tell


def _run_trial(drawn: dict[str, Any], location: str, run: str, options: RunOptions, workers: Workers | None) -> None:
    proposal, number = proposal_of(drawn)
    config = proposal.config
    folder = TrialFolder(run, trial_id_of(config))
    forget_peak()
    dataset = patiently(lambda: open_dataset(location), folder)  # what is wrong with it ends the search, not the trial
    try:
        start = patiently(lambda: folder.begin(config, dataset=dataset.fingerprint, number=number), folder)
        if start and read_info(start).step == proposal.until:  # killed after its last checkpoint, before that was told
            _close(folder, proposal)
            tune.report(read_info(start).metrics)
        elif workers:
            from vbd.search.tune.trial_workers import train_on_workers  # loads Ray Train: seconds

            train_on_workers(proposal, number, location=location, run=run, options=options, workers=workers)
        else:
            keep = Keeping(folder, proposal)
            train(
                config,
                dataset,
                options=options,
                report=lambda metrics, checkpoint: tune.report(keep(metrics, checkpoint)),
                resume_from=start,
                until=proposal.until,
            )
    except StoreError:
        raise  # the store may answer at the next attempt
    except (TrainingError, InputError) as error:
        reason = str(error).splitlines()[0]
    except Exception as error:
        unexpected = error  # the name of a handler is gone after it, and with it what the lambda refers to
        reason = patiently(lambda: returned(folder.location, unexpected), folder)
        if not reason:
            raise
    else:
        return
    patiently(lambda: folder.fail(reason), folder)
    tune.report({SCORE: math.nan, "step": config.steps, "failed": reason})


class Keeping:
    """Keeps what the loop reports in the trial's folder, and tells Ray's metrics."""

    def __init__(self, folder: TrialFolder, proposal: Proposal, **more: Any):
        """`more` goes into every report."""
        self._folder, self._proposal = folder, proposal
        self._more = {"host": socket.gethostname(), "device": device_name(), "attempt_started": time.time()} | more
        self._metrics = TrialMetrics(proposal.config, folder.trial_id)

    def __call__(self, metrics: dict[str, Any], checkpoint: Path | None) -> dict[str, Any]:
        """Returns the whole report, when it is safe on disk: who hears of it may end this process at once."""
        assert checkpoint is not None
        report = metrics | self._more | {"timestamp": time.time()}
        patiently(lambda: self._folder.keep(report, checkpoint, hold=self._proposal.hold), self._folder)
        if report["step"] == self._proposal.until:
            patiently(lambda: _close(self._folder, self._proposal), self._folder)
        self._metrics.report(report)
        return report | {TIMESTEPS_TOTAL: report["step"]}  # the axis of TensorBoard, which else counts reports


def _close(folder: TrialFolder, proposal: Proposal) -> Trial:
    return folder.finish() if proposal.until == proposal.config.steps else folder.wait()


def patiently(action: Callable[[], T], folder: TrialFolder) -> T:
    """What `action` returns, tried again while the store is out of reach or the disk full."""

    def say(text: str) -> None:
        print(f"trial {folder.trial_id}{on_host()}: {text}", flush=True)

    return storage.patiently(action, seconds=storage.PATIENCE_SECONDS, say=say)


def device_name() -> str:
    """The device of this process among those of its host: `cuda:<index on the host>`, or `cpu`."""
    gpus = ray.get_gpu_ids()
    return "cuda:" + ",".join(map(str, gpus)) if gpus else "cpu"
