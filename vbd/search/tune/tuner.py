"""Tune as the one who places trials on the cluster and starts them again; what decides is elsewhere."""

import math
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

from ray import tune
from ray.tune.schedulers import TrialScheduler

from vbd.cluster.placement import check_workers, rooms, selector_for, use_gpus
from vbd.config import RunOptions, SearchConfig
from vbd.evaluation.score import SCORE
from vbd.search.kept.trial import trial_id_of
from vbd.search.tune.handed_over import Workers, proposal_of
from vbd.search.tune.searcher import ProposalSearcher

# Trials that wait for room at a time: what an autoscaler sees and grows for.
_PENDING = 32


def build_tuner(
    trainable: Any,
    needs: Workers,
    *,
    searcher: ProposalSearcher,
    scheduler: TrialScheduler,
    watch: "Watch",
    callbacks: Sequence[tune.Callback],
    run: str,
) -> tune.Tuner:
    """Tune for trials that need so much of the cluster; it is told nothing of what was before."""
    os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", str(_PENDING))

    def directory(trial: Any) -> str:
        return f"trial-{trial_id_of(proposal_of(trial.config)[0].config)}"

    return tune.Tuner(
        tune.with_resources(trainable, _resources(needs)),
        tune_config=tune.TuneConfig(
            metric=SCORE,
            mode="max",
            scheduler=scheduler,
            search_alg=searcher,
            # Of several workers: each that waits would have a process of its own.
            max_concurrent_trials=_trials_at_a_time(needs) if needs.number > 1 else None,
            num_samples=-1,  # until the searcher says that there are no more
            reuse_actors=True,
            trial_name_creator=directory,
            trial_dirname_creator=directory,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=run,
            verbose=0,  # our own lines say more, and read well in a job's log
            callbacks=[watch, *callbacks],
            failure_config=tune.FailureConfig(max_failures=needs.max_failures),
            stop=watch,
        ),
    )


class Watch(tune.Callback, tune.Stopper):
    """Writes into a trial's folder what only the driver knows, and ends the search when no trial could do better."""

    def __init__(self, searcher: ProposalSearcher):
        self._searcher = searcher

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        """Asked by Tune after every report."""
        return self._searcher.fault is not None

    def on_stop(self, trial: Any, reason: str) -> None:
        """The scheduler ends a trial early."""
        folder = self._searcher.folder_of(proposal_of(trial.config)[0].config)
        self._searcher.reach(lambda: folder.stop(reason))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A trial's last attempt has failed: the searcher has been told that, but not of what."""
        folder = self._searcher.folder_of(proposal_of(trial.config)[0].config)
        if self._searcher.fault is not None:
            return  # Tune's copy of the error lies in the same store
        found, error = self._searcher.reach(folder.read), trial.get_error()
        told = re.findall(r"^[\w.]*Error: .+$", str(error or ""), re.MULTILINE)
        if found is not None and found.status == "died" and told:
            reason = f"{found.reason}; the last time {told[-1]}"
            self._searcher.reach(lambda: folder.lose(reason))


def needs_of(search: SearchConfig, options: RunOptions) -> Workers:
    """What a trial asks of the cluster; raises InputError for what it has not and never will have."""
    gpus = _gpus_per_worker(search, options)
    needs = Workers(
        search.workers_per_trial,
        search.cpus_per_trial,
        gpus,
        search.max_failures,
        selector_for("training", gpu=gpus > 0),
    )
    check_workers(
        needs.number,
        needs.each,
        selector=needs.selector,
        what="worker(s) of a trial",
        mend="--device cpu, less by --set (gpus_per_trial, cpus_per_trial, workers_per_trial), or a larger cluster",
    )
    return needs


def _gpus_per_worker(search: SearchConfig, options: RunOptions) -> float:
    if options.device == "cpu":
        return 0
    # One whole GPU by default, where the cluster has or may start any.
    gpus = use_gpus("cuda" if (search.gpus_per_trial or 0) > 0 else options.device)
    return search.gpus_per_trial if search.gpus_per_trial is not None else float(gpus)


def _resources(needs: Workers) -> tune.PlacementGroupFactory:
    """What Tune reserves for a trial, and on which nodes."""
    bundle = needs.each
    if needs.number > 1:
        bundle = {"memory": 1}  # of its own process next to nothing, or it would hold a core that its workers wait for
    where = {"bundle_label_selector": [dict(needs.selector)]} if needs.selector else {}
    return tune.PlacementGroupFactory([bundle], **where)


def ahead_of(search: SearchConfig, needs: Workers) -> Callable[[], float] | None:
    """How many trials may be pending and running together, asked at each proposal; None: any number.

    Optuna proposes from results, so it proposes no more trials than the cluster has room for or may grow to, and one that
    is ready when a slot is free.
    """
    return (lambda: 1 + _trials_at_a_time(needs)) if search.searcher == "optuna" else None


def _trials_at_a_time(needs: Workers) -> int:
    """Number of trials that the cluster has room for, or may grow to."""
    room = rooms(needs.each, needs.selector)
    return _PENDING if math.isinf(room) else max(1, int(room // needs.number))
