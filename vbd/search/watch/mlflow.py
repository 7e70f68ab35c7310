"""Who else is told of a search: MLflow, when the environment says where it is. A search never waits for it."""

import importlib.util
import math
import os
import queue
import threading
import time
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ray import tune

from vbd.config import TrainConfig, changed_fields, config_hash
from vbd.errors import InputError
from vbd.evaluation.score import SCORE
from vbd.search.kept.trial import trial_id_of
from vbd.search.tune.handed_over import proposal_of

if TYPE_CHECKING:
    from mlflow import MlflowClient

_VARIABLE = "MLFLOW_TRACKING_URI"
_METRICS = (
    *(SCORE, "map_40_findings", "map_coco_101", "ap_no_finding"),
    *("loss", "gradient_norm", "learning_rate", "images_per_second"),
    *("seconds", "validation_seconds", "micro_batch", "peak_memory_mb"),
)
_PAUSE_SECONDS = 10.0  # before a server that did not answer is asked again
_LAST_SECONDS = 60.0  # that a search waits at its end for what is not sent yet


def loggers(run_name: str) -> list[tune.Callback]:
    """What reports a search elsewhere; raises InputError when what the environment asks for is not installed."""
    if not os.environ.get(_VARIABLE):
        return []
    if importlib.util.find_spec("mlflow") is None:
        raise InputError(f"{_VARIABLE} is set, but mlflow is not installed; pip install 'vbd[mlflow]', or unset it")
    # MLflow's own patience is minutes, and it tells its makers of its use.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    return [MlflowTrials(run_name)]


@dataclass(frozen=True)
class _News:
    """What MLflow is to know of a trial: what it has reported, if anything, and the state it is in."""

    config: TrainConfig
    report: dict[str, Any]
    status: str = "RUNNING"  # or FINISHED, FAILED, KILLED: ended before its last step


class MlflowTrials(tune.Callback):
    """One MLflow run for each trial, in an experiment with the search's name; a resumed trial goes on with its run.

    Ray's own callback would begin another run for it, count reports instead of steps, and end the search with the server.
    """

    def __init__(self, experiment: str):
        self._experiment = experiment
        self._running: dict[str, TrainConfig] = {}

    def setup(self, *_: Any, **__: Any) -> None:
        """Called by Tune before the first trial; before that it pickles its callbacks, and a thread is not pickled."""
        self._sender = _Sender(self._experiment)
        self._sender.start()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A trial begins, or goes on."""
        self._tell(_News(_config_of(trial), {}))

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        """A trial reports."""
        self._tell(_News(_config_of(trial), result))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A trial is trained to its end, as far as it should be for now, or has been stopped early."""
        proposal, _number = proposal_of(trial.config)
        last = trial.last_result or {}
        if last.get("failed"):
            self._tell(_News(proposal.config, last, "FAILED"))
        elif last.get("step", 0) < proposal.until:
            self._tell(_News(proposal.config, {}, "KILLED"))
        elif proposal.until == proposal.config.steps:
            self._tell(_News(proposal.config, {}, "FINISHED"))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A trial's last attempt has failed."""
        self._tell(_News(_config_of(trial), {}, "FAILED"))

    def on_experiment_end(self, trials: list[Any], **_: Any) -> None:
        """The search ends; whatever still runs or waits does not go on."""
        for config in [*self._running.values()]:
            self._tell(_News(config, {}, "KILLED"))
        self._sender.close()

    def _tell(self, news: _News) -> None:
        trial_id = trial_id_of(news.config)
        if news.status == "RUNNING":
            self._running[trial_id] = news.config
        else:
            self._running.pop(trial_id, None)
        self._sender.put(news)


def _config_of(trial: Any) -> TrainConfig:
    return proposal_of(trial.config)[0].config


class _Sender(threading.Thread):
    """Sends news in their order. Those that a server out of reach misses wait for it; a warning says so once."""

    def __init__(self, experiment: str):
        super().__init__(name="mlflow", daemon=True)
        self._experiment = experiment
        self._news: queue.SimpleQueue[_News | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._runs: dict[str, str] = {}  # MLflow's ids by ours
        self._warned = False

    def put(self, news: _News) -> None:
        """News to be sent."""
        self._news.put(news)

    def close(self) -> None:
        """No more news: waits a while for what is not sent yet."""
        self._news.put(None)
        self._closing.set()
        self.join(_LAST_SECONDS)

    def run(self) -> None:
        """The thread."""
        while (news := self._news.get()) is not None:
            while not self._is_settled(news):
                if self._closing.is_set():
                    return
                self._closing.wait(_PAUSE_SECONDS)

    def _is_settled(self, news: _News) -> bool:
        """Whether the server has it, or will not have it however often it is asked."""
        try:
            self._send(news)
        except Exception as error:  # whatever it is, the search is worth more
            status = error.get_http_status_code() if hasattr(error, "get_http_status_code") else 500
            self._warn(error)
            return 400 <= status < 500 and status != 429
        return True

    def _warn(self, error: Exception) -> None:
        if self._warned:
            return
        self._warned = True
        uri = os.environ[_VARIABLE]
        host = urlsplit(uri).netloc.rpartition("@")[2]
        reason = (str(error).splitlines() or [""])[0].replace(uri, host or uri)  # it may hold a password
        print(
            f"MLflow: {type(error).__name__}: {reason[:200]}; the search goes on",
            flush=True,
        )

    def _send(self, news: _News) -> None:
        from mlflow.entities import Metric, RunTag

        run, report = self._run_of(news.config), news.report
        now = int(1000 * report.get("timestamp", time.time()))
        metrics = [
            Metric(name, float(report[name]), now, report["step"])
            for name in _METRICS
            if report.get(name) is not None and math.isfinite(report[name])
        ]
        told = {"host": report.get("host"), "reason": report.get("failed")}
        self._client.log_batch(run, metrics=metrics, tags=[RunTag(name, str(of)) for name, of in told.items() if of])
        if news.status != "RUNNING":
            self._client.set_terminated(run, status=news.status)

    def _run_of(self, config: TrainConfig) -> str:
        """The id of a trial's run: that of an earlier session, or a new one."""
        from mlflow.entities import Param

        ours = trial_id_of(config)
        if ours not in self._runs:
            run = self._found(ours) or self._begun(config)
            self._client.log_batch(run, params=[Param(name, str(of)) for name, of in changed_fields(config).items()])
            self._runs[ours] = run
        return self._runs[ours]

    def _found(self, trial_id: str) -> str | None:
        found = self._client.search_runs([self._experiment_id], f"tags.trial = '{trial_id}'", max_results=1)
        for run in found:
            self._client.update_run(run.info.run_id, status="RUNNING")
        return found[0].info.run_id if found else None

    def _begun(self, config: TrainConfig) -> str:
        ours = trial_id_of(config)
        tags = {"trial": ours, "family": config.detector, "config_hash": config_hash(config)}
        return self._client.create_run(self._experiment_id, run_name=f"trial-{ours}", tags=tags).info.run_id

    @cached_property
    def _client(self) -> "MlflowClient":
        from mlflow import MlflowClient

        return MlflowClient(os.environ[_VARIABLE])

    @cached_property
    def _experiment_id(self) -> str:
        found = self._client.get_experiment_by_name(self._experiment)
        return found.experiment_id if found else self._client.create_experiment(self._experiment)
