"""The search on Ray Tune: one trial is one plain Tune function on one device, and processes are reused between trials."""

import dataclasses
import json
import logging
import math
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.fs
import ray
from ray import tune

from vbd import storage
from vbd.config import RunOptions, SearchConfig, TrainConfig, config_hash
from vbd.data.prepared import PreparedDataset, open_dataset
from vbd.difference import first_difference
from vbd.errors import InputError
from vbd.records import Trial
from vbd.search.leaderboard import (
    Leaderboard,
    format_leaderboard,
    keep_best,
    prove,
    ranked,
    write_leaderboard,
)
from vbd.search.schedule import METRIC, build_scheduler
from vbd.search.space import describe, draw_configs, number_of_trials, optuna_space, trial_config
from vbd.training.checkpoint import read_info, whole_checkpoints
from vbd.training.loop import TrainingError, train
from vbd.training.run_resources import check_gpus


def run_search(search: SearchConfig, *, data: str, storage_root: str, name: str, options: RunOptions) -> Leaderboard:
    """Runs a search, or goes on with it when the run folder holds an unfinished one; needs a Ray connection.

    Writes the leaderboard and the kept checkpoints to `<storage_root>/<name>`. Raises InputError when that folder belongs to
    another search or another dataset.
    """
    if not storage.is_safe_id(name):
        raise InputError(f"--name {name!r}: want letters, digits, and . _ - only, no path")
    dataset = open_dataset(data)
    run = storage.join(storage.absolute(storage_root), name)
    _claim_run_folder(run, search, dataset)
    print(describe(search), flush=True)
    tuner = _tuner(search, dataset, run=run, options=options)
    with _stop_on_sigterm() as stopped:
        results = tuner.fit()
    trials = [prove(_trial(search, result, run)) for result in results]
    board = Leaderboard(search.preset, dataset.fingerprint, dataset.synthetic, ranked(trials))
    write_leaderboard(run, board)
    print(format_leaderboard(board), flush=True)
    if stopped or any(trial.status == "unfinished" for trial in board.trials):
        raise KeyboardInterrupt  # what is finished is written; the job ends as interrupted
    keep_best(run, board, per_family=search.keep_per_family)
    return board


def _claim_run_folder(run: str, search: SearchConfig, dataset: PreparedDataset) -> None:
    """A run folder belongs to one search on one dataset."""
    location = storage.join(run, "run.json")
    mine = {"search": json.loads(json.dumps(dataclasses.asdict(search))), "dataset": dataset.fingerprint}
    if not storage.exists(location):
        if storage.list_names(run):
            raise InputError(f"{run}: the folder is not empty and holds no run; choose another --name")
        storage.write_json(location, mine)
        return
    theirs = storage.read_object(location)
    if theirs.get("dataset") != mine["dataset"]:
        raise InputError(
            f"{run}: a search on dataset {theirs.get('dataset')}, not {mine['dataset']}; choose another --name"
        )
    if theirs.get("search") != mine["search"]:
        difference = first_difference(theirs.get("search", {}), mine["search"])
        raise InputError(f"{run}: another search ({difference}); choose another --name")


# --------------------------------------------------------------------------------------------------------------- Tune


def _tuner(search: SearchConfig, dataset: PreparedDataset, *, run: str, options: RunOptions) -> tune.Tuner:
    trainable = tune.with_resources(
        tune.with_parameters(run_trial, search=search, location=dataset.location, run=run, options=options),
        {"cpu": search.cpus_per_trial, "gpu": _gpus_per_trial(search, options)},
    )
    files, path = storage.filesystem(storage.join(run, "tune"))
    experiment = path if isinstance(files, pyarrow.fs.LocalFileSystem) else storage.join(run, "tune")
    if tune.Tuner.can_restore(experiment):
        print(f"{run}: going on with the search", flush=True)
        return tune.Tuner.restore(experiment, trainable=trainable, resume_unfinished=True, resume_errored=True)
    space = {"train": tune.grid_search([dataclasses.asdict(config) for config in draw_configs(search)])}
    return tune.Tuner(
        trainable,
        param_space=None if search.searcher == "optuna" else space,
        tune_config=tune.TuneConfig(
            metric=METRIC,
            mode="max",
            scheduler=build_scheduler(search),
            search_alg=_searcher(search),
            num_samples=number_of_trials(search) if search.searcher == "optuna" else 1,
            reuse_actors=True,
            trial_name_creator=lambda trial: f"trial-{trial.trial_id}",
            trial_dirname_creator=lambda trial: f"trial-{trial.trial_id}",
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=run,
            verbose=0,  # our own lines say more, and read well in a job's log
            callbacks=[ProgressLines(search, run)],
            failure_config=tune.FailureConfig(max_failures=search.max_failures),
            checkpoint_config=tune.CheckpointConfig(
                num_to_keep=1, checkpoint_score_attribute=METRIC, checkpoint_score_order="max"
            ),
        ),
    )


def _gpus_per_trial(search: SearchConfig, options: RunOptions) -> float:
    if options.device == "cpu":
        return 0
    check_gpus(options.device == "cuda" or (search.gpus_per_trial or 0) > 0)
    if search.gpus_per_trial is not None:
        return search.gpus_per_trial
    return 1 if ray.cluster_resources().get("GPU", 0) >= 1 else 0


def _searcher(search: SearchConfig) -> Any:
    if search.searcher != "optuna":
        return None
    import optuna
    from ray.tune.search import ConcurrencyLimiter
    from ray.tune.search.optuna import OptunaSearch

    sampler = optuna.samplers.TPESampler(multivariate=True, group=True, seed=search.seed)
    searcher = OptunaSearch(space=optuna_space(search), metric=METRIC, mode="max", sampler=sampler)
    # With a searcher Tune asks an autoscaler for one pending trial at a time, unless told how many may run.
    return ConcurrencyLimiter(searcher, max_concurrent=max(1, number_of_trials(search) // 4))


def run_trial(drawn: dict[str, Any], *, search: SearchConfig, location: str, run: str, options: RunOptions) -> None:
    """One trial, in a Ray worker. What no second attempt would mend is reported as failed; the rest is raised and retried."""
    logging.getLogger("ray.train._internal.storage").setLevel(logging.WARNING)  # a line for every checkpoint
    config = trial_config(search, drawn)
    proof = {"config_hash": config_hash(config), "host": socket.gethostname(), "failed": ""}

    def report(metrics: dict[str, Any], folder: Path | None) -> None:
        tune.report(metrics | proof, checkpoint=tune.Checkpoint.from_directory(str(folder)))

    # The newest on disk: the driver's journal may be older, and may name a checkpoint that has been pruned since.
    earlier = whole_checkpoints(_trial_folder(run, tune.get_context().get_trial_id()))
    done = read_info(earlier[-1]) if earlier else None
    if done is not None and done.step == config.steps:  # killed after its last checkpoint, before that was told
        tune.report(done.metrics | proof)
        return
    try:
        train(
            config,
            open_dataset(location),
            options=options,
            report=report,
            resume_from=earlier[-1] if earlier else None,
        )
    except (TrainingError, InputError) as error:
        reason = str(error).splitlines()[0]
        tune.report(proof | {METRIC: math.nan, "step": config.steps, "failed": reason})


def _trial_folder(run: str, trial_id: str) -> str:
    return storage.join(run, "tune", f"trial-{trial_id}")


def _trial(search: SearchConfig, result: Any, run: str) -> Trial:
    """A trial from Tune's result and from the disk: the best checkpoint there, and the report that it carries."""
    config = trial_config(search, result.config)
    frame = result.metrics_dataframe
    history = [] if frame is None else frame.drop_duplicates("step", keep="last").to_dict("records")
    reports = [_plain(row) for row in history]
    last = reports[-1] if reports else {}
    trial_id = Path(result.path).name.removeprefix("trial-")
    status, reason = _outcome(result, last, config)
    found = [(folder, read_info(folder)) for folder in whole_checkpoints(_trial_folder(run, trial_id))]
    # A fold without findings has no score: null in the checkpoint.
    folder, best = max(found, key=lambda pair: pair[1].metrics[METRIC] or 0.0, default=("", None))
    score = None if best is None or status == "failed" else best.metrics[METRIC]
    return Trial(
        trial_id=trial_id,
        config=config,
        config_hash=last.get("config_hash", config_hash(config)),
        score=math.nan if score is None else score,
        steps=int(last.get("step", 0)) if best is None else best.step,
        checkpoint=folder,
        status=status,
        reason=reason,
        metrics=last,
        history=reports,
    )


def _outcome(result: Any, last: dict[str, Any], config: TrainConfig) -> tuple[str, str]:
    """How a trial ended, and why if it failed; `last` is its last report."""
    if result.error is not None:
        return "failed", (str(result.error).strip().splitlines() or ["unknown"])[-1]
    if last.get("failed"):
        return "failed", last["failed"]
    if last.get("step") == config.steps:
        return "finished", ""
    return ("stopped" if result.metrics and result.metrics.get("done") else "unfinished"), ""


_REPORTED = (
    *("step", METRIC, "map_coco_101", "loss", "learning_rate", "images_per_second", "seconds"),
    *("config_hash", "host", "failed", "timestamp"),
)


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """What we reported, without Tune's own columns, as JSON values."""
    return {name: row[name].item() if hasattr(row[name], "item") else row[name] for name in _REPORTED if name in row}


@contextmanager
def _stop_on_sigterm() -> Iterator[list[int]]:
    """SIGTERM (`ray job stop`) becomes Tune's own graceful stop: it saves its state and `fit` returns."""
    stopped: list[int] = []

    def stop(number: int, _frame: Any) -> None:
        stopped.append(number)
        signal.raise_signal(signal.SIGUSR1)

    before = signal.signal(signal.SIGTERM, stop)  # after ray.init, which installs its own
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGTERM, before)


class ProgressLines(tune.Callback):
    """One line for each report, and the best of each family when a trial ends."""

    def __init__(self, search: SearchConfig, run: str):
        self._search = search
        self._total = number_of_trials(search)
        self._started: float | None = None  # the clock of the process that runs the search, a resumed one too
        self._best: dict[str, float] = {}

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        config = trial_config(self._search, trial.config)
        if result.get("failed"):
            self._say(trials, config, f"failed: {result['failed']}")
            return
        score = result[METRIC]
        self._best[config.detector] = max(self._best.get(config.detector, 0.0), score)
        self._say(
            trials,
            config,
            f"step {result['step']}/{config.steps}  loss {result['loss']:.3f}  {METRIC} {score:.4f}  "
            f"{result['images_per_second']:.0f} images/s",
        )

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        best = "  ".join(f"{family} {score:.4f}" for family, score in sorted(self._best.items()))
        self._say(trials, trial_config(self._search, trial.config), f"done; best so far: {best}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self._say(
            trials, trial_config(self._search, trial.config), "its process died; it is tried again from its checkpoint"
        )

    def _say(self, trials: list[Any], config: TrainConfig, text: str) -> None:
        now = time.monotonic()
        self._started = self._started or now
        minutes, seconds = divmod(int(now - self._started), 60)
        finished = sum(trial.status == "TERMINATED" for trial in trials)
        strength = "" if config.policy == "A" else f" x{config.strength:g}"
        who = f"{config.detector} {config.variant} {config.policy}{strength} lr {config.learning_rate:.2g}"
        print(f"[{minutes:3d}:{seconds:02d}] {finished}/{self._total} trials | {who} | {text}", flush=True)
