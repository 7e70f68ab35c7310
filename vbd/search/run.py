"""The search: trials are drawn by a proposer, run by Ray Tune, ended by a scheduler, and told from the run folder alone."""

import dataclasses
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ray import tune

from vbd import storage
from vbd.cluster.placement import told_while_waiting
from vbd.config import RunOptions, SearchConfig, TrainConfig
from vbd.console.last_line import tell
from vbd.data.prepared import PreparedDataset, open_dataset
from vbd.errors import interruption_within
from vbd.records import Trial
from vbd.search.cost.measure import close_forecast, devices_of, prepare_forecast
from vbd.search.cost.rates import final_problem
from vbd.search.kept.claim import check_run_folder, claim_of
from vbd.search.kept.keep import Keeper, keep_best
from vbd.search.kept.leaderboard import Leaderboard, format_leaderboard, ranked, write_leaderboard
from vbd.search.kept.proof import prove, truths_of_fold
from vbd.search.kept.trial import ENDED, TrialFolder, read_trials, trial_id_of
from vbd.search.propose.build import build_proposer
from vbd.search.propose.population import describe_population, describe_schedules
from vbd.search.propose.proposal import Proposer
from vbd.search.space.draws import check_micro_batches, describe, draw_configs
from vbd.search.space.settings import run_folder
from vbd.search.stop.schedule import build_scheduler
from vbd.search.tune.handed_over import Workers
from vbd.search.tune.outage import fit
from vbd.search.tune.searcher import ProposalSearcher
from vbd.search.tune.trial import run_trial
from vbd.search.tune.tuner import Watch, ahead_of, build_tuner, needs_of
from vbd.search.watch.live_table import shown
from vbd.search.watch.mlflow import loggers
from vbd.search.watch.progress import Plan, SearchProgress
from vbd.storage.ownership import Owner, own


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
    InputError when another job works in that folder, or when it belongs to another search or dataset, unless it may `extend`
    it: what is there stays, and what the new one adds is run. Raises KeyboardInterrupt when it was stopped, with all that has
    ended written.
    """
    run, dataset = run_folder(storage_root, name), open_dataset(data)
    with own(run, "tune") as owner:
        return _run_search(search, dataset, run, options, owner, extend=extend, price=price)


def _run_search(
    search: SearchConfig,
    dataset: PreparedDataset,
    run: str,
    options: RunOptions,
    owner: Owner,
    *,
    extend: bool,
    price: float | None,
) -> Leaderboard:
    needs = needs_of(search, options)
    check_micro_batches(search, options, dataset)
    known, claim = _open_run(run, search, dataset, extend=extend)
    proposer = build_proposer(search, dataset, known)
    session = _Session(run, search, dataset, options, needs)
    _tell(run, search, dataset, known, is_done=proposer.is_done, extend=extend)
    if proposer.is_done:
        claim()
        searcher, stopped = session.searcher(proposer, known), False
    else:
        with told_while_waiting(needs.each, needs.selector):
            plan = session.plan(proposer, known, price=price, renew=extend, claim=claim)
            searcher = session.searcher(proposer, known)  # which deletes files: after `claim`
            stopped = session.run(searcher, known, plan)
    owner.check()
    tell(started=searcher.started)
    board = read_board(run, search, dataset)
    write_leaderboard(run, board)
    _sum_up(run, board)
    print(format_leaderboard(board), flush=True)
    if search.scheduler == "population":
        print(describe_schedules(board.trials), flush=True)
    if taken := close_forecast(run, board.trials, price=price):
        print(taken, flush=True)
    if searcher.fault is not None:
        raise searcher.fault
    if stopped:
        session.close_logs()
        signal.raise_signal(signal.SIGTERM)  # now to who listened before, and knows how a job ends
    if stopped or searcher.is_busy or not proposer.is_done:
        raise KeyboardInterrupt  # what is finished is written; the job ends as interrupted
    keep_best(run, board, per_family=search.keep_per_family)
    return board


def _open_run(
    run: str, search: SearchConfig, dataset: PreparedDataset, *, extend: bool
) -> tuple[list[Trial], Callable[[], None]]:
    """The trials of an earlier session, and what writes run.json unless it is there.

    Nothing is written here: a search that is refused leaves no folder.
    """
    content = claim_of(search, dataset)
    is_new = check_run_folder(run, content, extend=extend)
    draw_configs(search, dataset)  # raises InputError for a wrong space

    def claim() -> None:
        if is_new:
            storage.write_json(storage.join(run, "run.json"), content | {"data": dataset.location})

    return _known(run, dataset), claim


def _tell(
    run: str, search: SearchConfig, dataset: PreparedDataset, known: Sequence[Trial], *, is_done: bool, extend: bool
) -> None:
    print(describe(search, dataset), flush=True)
    if search.scheduler == "population":
        print(describe_population(search, dataset), flush=True)
    if is_done:
        added = "--extend adds no trial" if extend else "nothing is left to train"
        print(
            f"{storage.shown(run)}: {added}: all trials that this search asks for have ended ({len(known)} in all); "
            "to train more, give more --trials or other values with --extend",
            flush=True,
        )
    elif known:
        ended = sum(trial.status in ENDED for trial in known)
        print(
            f"{storage.shown(run)}: going on with the search; {ended} trials have ended, {len(known) - ended} go on",
            flush=True,
        )


class _Session:
    """One run of Tune over what is left of a search."""

    def __init__(
        self, run: str, search: SearchConfig, dataset: PreparedDataset, options: RunOptions, needs: Workers
    ) -> None:
        self._run, self._search, self._dataset, self._options, self._needs = run, search, dataset, options, needs
        self._logs = loggers(run.rpartition("/")[2])

    def searcher(self, proposer: Proposer, known: Sequence[Trial]) -> ProposalSearcher:
        """Passes proposals to Tune; deletes checkpoints that an earlier session should have deleted."""
        search = self._search
        keeper = Keeper(
            self._run, per_family=search.keep_per_family, keep_all=search.keep_all, dataset=self._dataset.fingerprint
        )
        return ProposalSearcher(
            proposer,
            self._run,
            known,
            keeper.tell,
            max_failures=self._needs.max_failures,
            ahead=ahead_of(search, self._needs),
        )

    def plan(
        self,
        proposer: Proposer,
        known: Sequence[Trial],
        *,
        price: float | None,
        renew: bool,
        claim: Callable[[], None],
    ) -> Plan:
        """Prints the forecast; measures for it where the run has none, or it is to be renewed."""
        needs = self._needs
        record = prepare_forecast(
            self._run,
            self._search,
            proposer.planned,
            known,
            location=self._dataset.location,
            options=self._options,
            needs=needs,
            price=price,
            renew=renew,
            claim=claim,
        )
        return Plan(
            self._search,
            proposer.planned,
            total=proposer.total,
            rates=record.rates,
            devices=lambda: devices_of(needs),
            price=price,
        )

    def run(self, searcher: ProposalSearcher, known: Sequence[Trial], plan: Plan) -> bool:
        """Runs what is proposed; returns whether SIGTERM has ended it."""
        run, needs = self._run, self._needs
        watch, progress = Watch(searcher), SearchProgress(plan, run, known=known)
        dataset = self._dataset.fingerprint

        def fail_at_once(config: TrainConfig, number: int) -> Trial | None:
            problem = final_problem(config, plan.rates)
            if not problem:
                return None
            folder = TrialFolder(run, trial_id_of(config))
            folder.begin(config, dataset=dataset, number=number)
            trial = folder.fail(f"{problem} (when it was timed before the search)")
            progress.add_failed(trial)
            return trial

        searcher.fail_at_once = fail_at_once
        trainable = tune.with_parameters(
            run_trial,
            location=self._dataset.location,
            run=run,
            options=self._options,
            workers=needs if needs.number > 1 else None,
        )
        tuner = build_tuner(
            trainable,
            needs,
            searcher=searcher,
            scheduler=build_scheduler(self._search, known, on_stop=watch.on_stop),
            watch=watch,
            callbacks=[progress, *self._logs],
            run=run,
        )
        with _stop_on_sigterm() as stopped, shown(progress):
            fit(tuner, run, fault=lambda: searcher.fault)
        return bool(stopped)

    def close_logs(self) -> None:
        """Where Tune was ended before it came to it."""
        for log in self._logs:
            log.on_experiment_end([])


def _sum_up(run: str, board: Leaderboard) -> None:
    """For the last line of the job."""
    statuses = Counter(trial.status for trial in board.trials)
    best = board.trials[0] if board.trials else None
    tell(output=run, trials=dict(statuses), best=best and best.trial_id, best_score=best and best.score)


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
    except BaseException as error:
        if not stopped or interruption_within(error) is None:
            raise
    finally:
        signal.signal(signal.SIGTERM, before)
