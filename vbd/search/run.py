"""The search: trials are drawn by a proposer, run by Ray Tune, ended by a scheduler, and told from the run folder alone."""

import dataclasses
import json
import os
import re
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import TrialScheduler

from vbd import storage
from vbd.config import RunOptions, SearchConfig
from vbd.data.prepared import PreparedDataset, open_dataset
from vbd.difference import first_difference
from vbd.errors import InputError
from vbd.evaluation.score import SCORE
from vbd.records import Trial
from vbd.search.calibrate import close_forecast, devices_of, prepare_forecast
from vbd.search.keeping import Keeper, keep_best
from vbd.search.leaderboard import Leaderboard, format_leaderboard, ranked, write_leaderboard
from vbd.search.loggers import loggers
from vbd.search.outage import fit
from vbd.search.population import describe_population
from vbd.search.progress import Plan, SearchProgress
from vbd.search.proof import prove, truths_of_fold
from vbd.search.proposals import build_proposer
from vbd.search.schedule import build_scheduler
from vbd.search.space import describe, draw_configs
from vbd.search.trial import ENDED, read_trials, trial_id_of
from vbd.search.tuning import ProposalSearcher, Workers, proposal_of, run_trial
from vbd.training.run_resources import check_gpus, check_workers

# Trials that wait for room at a time: what an autoscaler sees and grows for.
_PENDING = 32


def run_search(
    search: SearchConfig,
    *,
    data: str,
    storage_root: str,
    name: str,
    options: RunOptions,
    extend: bool = False,
    price: float | None = None,
) -> Leaderboard:
    """Runs a search, or goes on with it when the run folder holds an unfinished one; needs a Ray connection.

    Writes the leaderboard and the kept checkpoints to `<storage_root>/<name>`. `price` is that of a device-hour. Raises
    InputError when that folder belongs to another search or another dataset, unless it may `extend` it: what is there stays,
    and what the new one adds is run. Raises KeyboardInterrupt when it was stopped, with all that has ended written.
    """
    if not storage.is_safe_id(name):
        raise InputError(f"--name {name!r}: want letters, digits, and . _ - only, no path")
    dataset = open_dataset(data)
    run = storage.join(storage.absolute(storage_root), name)
    needs = needs_of(search, options)
    claim = {"search": json.loads(json.dumps(dataclasses.asdict(search))), "dataset": dataset.fingerprint}
    is_new = _check_run_folder(run, claim, extend=extend)
    configs = draw_configs(search, dataset)  # a space that is wrong is told before anything is written
    if is_new:
        storage.write_json(storage.join(run, "run.json"), claim | {"data": dataset.location})
    known = _known(run, dataset)
    proposer = build_proposer(search, dataset, known)
    print(describe(search, dataset), flush=True)
    if search.scheduler == "population":
        print(describe_population(search, dataset), flush=True)
    if known:
        ended = sum(trial.status in ENDED for trial in known)
        print(f"{run}: going on with the search; {ended} trials have ended, {len(known) - ended} go on", flush=True)
    resources = {"cpu": needs.cpus, "gpu": needs.gpus}
    record = prepare_forecast(
        run,
        search,
        configs,
        known,
        location=dataset.location,
        options=options,
        resources=resources,
        price=price,
        renew=extend,
    )
    keeper = Keeper(run, per_family=search.keep_per_family, keep_all=search.keep_all, dataset=dataset.fingerprint)
    searcher = ProposalSearcher(proposer, run, known, keeper.tell, max_failures=needs.max_failures)
    watch = Watch(searcher)
    plan = Plan(
        search,
        configs,
        total=proposer.total,
        rates=record.rates,
        devices=lambda: devices_of(resources, workers=needs.number),
        price=price,
    )
    progress, logs = SearchProgress(plan, run, known=known), loggers(name)
    tuner = build_tuner(
        tune.with_parameters(
            run_trial,
            location=dataset.location,
            run=run,
            options=options,
            workers=needs if needs.number > 1 else None,
        ),
        needs,
        searcher=searcher,
        scheduler=build_scheduler(search, known, on_stop=watch.on_stop),
        watch=watch,
        callbacks=[progress, *logs],
        run=run,
    )
    with _stop_on_sigterm() as stopped, progress:
        fit(tuner, run, fault=lambda: searcher.fault)
    board = read_board(run, search, dataset)
    write_leaderboard(run, board)
    print(format_leaderboard(board), flush=True)
    print(close_forecast(run, board.trials, price=price), flush=True)
    if searcher.fault is not None:
        raise searcher.fault
    if stopped:
        for log in logs:
            log.on_experiment_end([])  # Tune has not come to it
        signal.raise_signal(signal.SIGTERM)  # now to who listened before, and knows how a job ends
    if stopped or searcher.is_busy or not proposer.is_done:
        raise KeyboardInterrupt  # what is finished is written; the job ends as interrupted
    keep_best(run, board, per_family=search.keep_per_family)
    return board


def read_board(run: str, search: SearchConfig, dataset: PreparedDataset) -> Leaderboard:
    """The leaderboard of what the run folder holds, each trial proven; those that have not ended are `unfinished`."""
    truths = truths_of_fold(dataset)
    trials = [
        dataclasses.replace(trial, status="unfinished") if trial.status in ("running", "waiting") else trial
        for trial in read_trials(run, dataset.fingerprint)
    ]
    proven = [prove(trial, truths) for trial in trials]
    return Leaderboard(search.preset, dataset.fingerprint, dataset.synthetic, ranked(proven))


def _known(run: str, dataset: PreparedDataset) -> list[Trial]:
    """What an earlier session left; trials whose process died time and again are tried once more."""
    trials = read_trials(run, dataset.fingerprint)
    return [dataclasses.replace(trial, status="running") if trial.status == "died" else trial for trial in trials]


def _check_run_folder(run: str, mine: dict[str, Any], *, extend: bool) -> bool:
    """Whether run.json is to be written: a run folder belongs to one search on one dataset."""
    location = storage.join(run, "run.json")
    if not storage.exists(location):
        if storage.list_names(run):
            raise InputError(f"{run}: the folder is not empty and holds no run; choose another --name")
        return True
    theirs = storage.read_object(location)
    is_mine = all(theirs.get(name) == value for name, value in mine.items())
    if is_mine or extend:
        return not is_mine
    way_out = "choose another --name, or --extend this run by what is new"
    if theirs.get("dataset") != mine["dataset"]:
        raise InputError(
            f"{run}: a search on dataset {theirs.get('dataset')}, not {mine['dataset']}; {way_out} (its trials stay as "
            "they are, and all are trained on the new dataset)"
        )
    difference = first_difference(theirs.get("search", {}), mine["search"])
    raise InputError(f"{run}: another search ({difference}); {way_out}")


# --------------------------------------------------------------------------------------------------------------- Tune


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
    """Tune as the one who places trials on devices and starts them again; it is told nothing of what was before."""
    os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", str(_PENDING))
    resources: Any = {"cpu": needs.cpus, "gpu": needs.gpus}
    if (
        needs.number > 1
    ):  # of the trial's own process next to nothing, or it would hold a core that its workers wait for
        resources = tune.PlacementGroupFactory([{"memory": 1}])

    def directory(trial: Any) -> str:
        return f"trial-{trial_id_of(proposal_of(trial.config)[0].config)}"

    return tune.Tuner(
        tune.with_resources(trainable, resources),
        tune_config=tune.TuneConfig(
            metric=SCORE,
            mode="max",
            scheduler=scheduler,
            search_alg=searcher,
            max_concurrent_trials=_rooms(needs) if needs.number > 1 else None,
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
    needs = Workers(
        search.workers_per_trial, search.cpus_per_trial, _gpus_per_worker(search, options), search.max_failures
    )
    check_workers(needs.number, {"CPU": needs.cpus, "GPU": needs.gpus})
    return needs


def _gpus_per_worker(search: SearchConfig, options: RunOptions) -> float:
    if options.device == "cpu":
        return 0
    check_gpus(options.device == "cuda" or (search.gpus_per_trial or 0) > 0)
    if search.gpus_per_trial is not None:
        return search.gpus_per_trial
    return 1 if ray.cluster_resources().get("GPU", 0) >= 1 else 0


def _rooms(workers: Workers) -> int:
    """How many trials of several workers there is room for: others would only wait, each with a process of its own."""
    total = ray.cluster_resources()
    each = {"CPU": workers.cpus, "GPU": workers.gpus}
    return max(1, min(int(total.get(name, 0) // (of * workers.number)) for name, of in each.items() if of))


@contextmanager
def _stop_on_sigterm() -> Iterator[list[int]]:
    """SIGTERM (`ray job stop`) ends what is inside at once; the numbers of such signals are in the list.

    Tune's own graceful stop gives each trial ten seconds, and saves nothing that the run folder has not. `ray job stop` kills
    after three. That stop is asked for too, should what is raised here get lost in a callback of some library.
    """
    stopped: list[int] = []

    def stop(number: int, _frame: Any) -> None:
        stopped.append(number)
        signal.raise_signal(signal.SIGUSR1)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # no signal arrives there
        yield stopped
        return
    before = signal.signal(signal.SIGTERM, stop)  # after ray.init, which installs its own
    try:
        yield stopped
    except KeyboardInterrupt:
        if not stopped:
            raise
    finally:
        signal.signal(signal.SIGTERM, before)
