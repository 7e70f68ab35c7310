"""What a search tells MLflow and TensorBoard."""

import dataclasses
import math
import sqlite3
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.search.trials import RCNN, checkpoint_of, config_of
from vbd.config import TrainConfig, config_hash
from vbd.data.prepared import open_dataset
from vbd.errors import InputError
from vbd.evaluation.score import SCORE
from vbd.search.kept.trial import TrialFolder, trial_id_of
from vbd.search.propose.listed import Listed
from vbd.search.propose.proposal import Proposal
from vbd.search.watch import mlflow as loggers


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """MLflow's database with its tables, which take seconds to make."""
    from mlflow import MlflowClient

    file = tmp_path_factory.mktemp("mlflow") / "empty.db"
    MlflowClient(f"sqlite:///{file}").get_experiment_by_name("none")
    with sqlite3.connect(file) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return file.read_bytes()


@pytest.fixture
def store(empty_store: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of an MLflow store, where MLflow looks for it."""
    (tmp_path / "mlflow.db").write_bytes(empty_store)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


def _trial(config: TrainConfig, *, until: int | None = None) -> Any:
    """A trial as Tune knows it."""
    proposal = Proposal(config, until=until or config.steps)
    drawn = {"proposal": dataclasses.asdict(proposal) | {"number": 0}}
    return SimpleNamespace(config=drawn, last_result=None)


def _report(step: int, **more: Any) -> dict[str, Any]:
    return {"step": step, SCORE: step / 100, "loss": 2.0, "host": "node-1", "timestamp": 1700000000.5, **more}


class Session:
    """Tune's calls of one session."""

    def __init__(self) -> None:
        (self.told,) = loggers.loggers("first")
        self.told.setup(stop=None)
        self.all: dict[str, Any] = {"iteration": 0, "trials": []}

    def begin(self, trial: Any) -> None:
        self.told.on_trial_start(**self.all, trial=trial)

    def report(self, trial: Any, result: dict[str, Any]) -> None:
        trial.last_result = result
        self.told.on_trial_result(**self.all, trial=trial, result=result)

    def complete(self, trial: Any) -> None:
        self.told.on_trial_complete(**self.all, trial=trial)

    def end(self) -> None:
        self.told.on_experiment_end(trials=[])


def _runs(store: str) -> dict[str, Any]:
    """MLflow's runs by our trial id."""
    from mlflow import MlflowClient

    client = MlflowClient(store)
    runs = client.search_runs([client.get_experiment_by_name("first").experiment_id])
    found = {run.data.tags["trial"]: run for run in runs}
    assert len(found) == len(runs), "two runs of one trial"
    return found


def _history(store: str, run: Any, name: str) -> list[tuple[int, float]]:
    from mlflow import MlflowClient

    return [(one.step, one.value) for one in MlflowClient(store).get_metric_history(run.info.run_id, name)]


def test_without_the_variable_nobody_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert loggers.loggers("first") == []


def test_a_missing_mlflow_is_told_in_one_line(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"mlflow is not installed; pip install 'vbd\[mlflow\]'"):
        loggers.loggers("first")


def test_a_trial_is_a_run_with_what_its_config_changes_and_its_metrics_by_step(store: str) -> None:
    config = config_of(1, learning_rate=0.5, **RCNN)
    trial, session = _trial(config), Session()
    session.begin(trial)
    session.report(trial, _report(20, map_coco_101=math.nan))
    session.report(trial, _report(40, map_coco_101=0.25, gradient_norm=None))
    session.complete(trial)
    session.end()
    run = _runs(store)[trial_id_of(config)]
    assert run.info.status == "FINISHED"
    assert run.info.run_name == f"trial-{trial_id_of(config)}"
    assert run.data.params == {
        **{"detector": "faster_rcnn", "variant": "resnet50", "learning_rate": "0.5"},
        **{"steps": "40", "report_every": "10", "seed": "1"},
    }
    tags = {name: of for name, of in run.data.tags.items() if not name.startswith("mlflow.")}
    assert tags == {
        **{"trial": trial_id_of(config), "family": "faster_rcnn"},
        **{"config_hash": config_hash(config), "host": "node-1"},
    }
    assert run.data.metrics == {SCORE: 0.4, "map_coco_101": 0.25, "loss": 2.0}
    assert _history(store, run, SCORE) == [(20, 0.2), (40, 0.4)]
    assert _history(store, run, "map_coco_101") == [(40, 0.25)]


def test_how_a_trial_ended_is_its_runs_status(store: str) -> None:
    finished, failed, stopped, died, running = (_trial(config_of(seed)) for seed in range(5))
    member, replaced = (_trial(config_of(seed), until=20) for seed in (5, 6))
    session = Session()
    for trial in (finished, failed, stopped, died, running, member, replaced):
        session.begin(trial)
        session.report(trial, _report(20))
    session.report(finished, _report(40))
    session.report(failed, {SCORE: math.nan, "step": 40, "failed": "the loss is nan"})
    session.report(died, {SCORE: math.nan, "fault": "the store is gone"})
    for trial in (finished, failed, stopped, member, replaced):
        session.complete(trial)
    session.told.on_trial_error(**session.all, trial=died)
    again = _trial(config_of(5))  # a member of a population that goes on
    session.begin(again)
    session.report(again, _report(40))
    session.complete(again)
    session.end()
    runs = _runs(store)
    of = [runs[trial_id_of(config_of(seed))] for seed in range(7)]
    status = [run.info.status for run in of]
    assert status == ["FINISHED", "FAILED", "KILLED", "FAILED", "KILLED", "FINISHED", "KILLED"]
    assert of[1].data.tags["reason"] == "the loss is nan"
    assert _history(store, of[1], SCORE) == [(20, 0.2)]
    assert _history(store, of[5], SCORE) == [(20, 0.2), (40, 0.4)]


def test_a_trial_that_is_resumed_goes_on_with_its_run(store: str) -> None:
    config = config_of(1)
    first = Session()
    trial = _trial(config)
    first.begin(trial)
    first.report(trial, _report(20))
    first.end()
    before = _runs(store)[trial_id_of(config)]
    assert before.info.status == "KILLED"
    second = Session()
    trial = _trial(config)
    second.begin(trial)
    second.report(trial, _report(40))
    second.complete(trial)
    second.end()
    after = _runs(store)[trial_id_of(config)]
    assert (after.info.run_id, after.info.status) == (before.info.run_id, "FINISHED")
    assert _history(store, after, SCORE) == [(20, 0.2), (40, 0.4)]


class Broken:
    """A client that fails, at first or always."""

    def __init__(self, client: Any, fails: Any):
        self._client, self._fails = client, fails

    def __getattr__(self, name: str) -> Any:
        self._fails(name)
        return getattr(self._client, name)


def _break(monkeypatch: pytest.MonkeyPatch, fails: Any) -> None:
    import mlflow

    make = mlflow.MlflowClient
    monkeypatch.setattr(mlflow, "MlflowClient", lambda uri: Broken(make(uri), fails))
    monkeypatch.setattr(loggers, "_PAUSE_SECONDS", 0.01)


def test_what_a_server_out_of_reach_misses_is_sent_when_it_answers(
    store: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def fails(name: str) -> None:
        asked.append(name)
        if len(asked) < 4:
            raise ConnectionError("no answer")

    with monkeypatch.context() as patched:
        _break(patched, fails)
        trial, session = _trial(config_of(1)), Session()
        session.begin(trial)
        session.report(trial, _report(40))
        session.complete(trial)
        while len(asked) < 4:  # closing gives up at once
            session.told._sender.join(0.01)
        session.end()
    run = _runs(store)[trial_id_of(config_of(1))]
    assert (run.info.status, _history(store, run, SCORE)) == ("FINISHED", [(40, 0.4)])
    (line,) = capsys.readouterr().out.splitlines()
    assert line == "MLflow: ConnectionError: no answer; the search goes on"


def test_news_that_a_server_refuses_holds_up_no_others(
    store: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlflow.exceptions import MlflowException

    refusals = [MlflowException.invalid_parameter_value("too long")]

    def fails(name: str) -> None:
        if name == "create_run" and refusals:
            raise refusals.pop()

    with monkeypatch.context() as patched:
        _break(patched, fails)
        one, session = _trial(config_of(1)), Session()
        session.begin(one)
        session.report(one, _report(40))
        session.end()
    assert _history(store, _runs(store)[trial_id_of(config_of(1))], SCORE) == [(40, 0.4)]
    assert "too long" in capsys.readouterr().out


def test_a_server_that_never_answers_is_told_once_without_its_password(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://someone:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    session = Session()
    for seed in range(3):
        trial = _trial(config_of(seed))
        session.begin(trial)
        session.report(trial, _report(40))
        session.complete(trial)
    session.end()
    assert not session.told._sender.is_alive()
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("MLflow: MlflowException: ")
    assert "127.0.0.1:9" in line
    assert "secret" not in line


# ---------------------------------------------------------------------------------------------------- by Ray Tune itself


def _train(drawn: dict[str, Any], *, run: str, data: str, scratch: str) -> None:
    """Reports as a trial does, of checkpoints that hold no weights."""
    from ray import tune

    from vbd.search.tune.handed_over import proposal_of
    from vbd.search.tune.report import Keeping

    proposal, number = proposal_of(drawn)
    folder = TrialFolder(run, trial_id_of(proposal.config))
    folder.begin(proposal.config, dataset=open_dataset(data).fingerprint, number=number)
    keep = Keeping(folder, proposal)
    for step in (20, 40):
        checkpoint = Path(scratch) / folder.trial_id
        metrics = checkpoint_of(checkpoint, proposal.config, data, step=step, skill=step / 40)
        tune.report(keep(metrics | {"loss": 40.0 / step}, checkpoint))


@pytest.fixture
def searched(prepared: str, store: str, tmp_path: Path) -> tuple[Path, list[TrainConfig]]:
    """The folder of a run that Tune has carried out, with two trials, and their configs."""
    from ray import tune
    from ray.tune.schedulers import FIFOScheduler

    from vbd.search.tune.handed_over import Workers
    from vbd.search.tune.searcher import ProposalSearcher
    from vbd.search.tune.tuner import Watch, build_tuner

    configs, run = [config_of(1), config_of(2, policy="B")], tmp_path / "run"
    searcher = ProposalSearcher(Listed(configs), str(run), [], lambda trial: None)
    tuner = build_tuner(
        tune.with_parameters(_train, run=str(run), data=prepared, scratch=str(tmp_path / "scratch")),
        Workers(1, cpus=1, gpus=0, max_failures=0),
        searcher=searcher,
        scheduler=FIFOScheduler(),
        watch=Watch(searcher),
        callbacks=loggers.loggers("first"),
        run=str(run),
    )
    tuner.fit()
    return run, configs


def test_mlflow_and_tensorboard_show_a_search_by_its_steps(
    searched: tuple[Path, list[TrainConfig]], store: str
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run, configs = searched
    runs = _runs(store)
    assert len(runs) == 2
    for config in configs:
        trial_id = trial_id_of(config)
        mine = runs[trial_id]
        assert mine.info.status == "FINISHED"
        assert _history(store, mine, "loss") == [(20, 2.0), (40, 1.0)]
        events = EventAccumulator(str(run / "tune" / f"trial-{trial_id}")).Reload()
        losses = events.Scalars("ray/tune/loss")
        assert [(one.step, one.value) for one in losses] == [(20, 2.0), (40, 1.0)]
        trial = TrialFolder(str(run), trial_id).read()
        assert trial is not None
        scores = {one.step: one.value for one in events.Scalars(f"ray/tune/{SCORE}")}
        assert scores == pytest.approx({report["step"]: report[SCORE] for report in trial.history})
        assert "timesteps_total" not in trial.history[-1]
