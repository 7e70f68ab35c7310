"""What passes between Tune and the run folder, also while the store is out of reach."""

import logging
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ray.tune.search import Searcher

from tests.mistakes import interrupted_lock
from vbd import storage
from vbd.cluster.nodes import Cluster, Node, NodeType
from vbd.config import RunOptions, SearchConfig, TrainConfig
from vbd.errors import InputError, StoreError
from vbd.records import Trial
from vbd.search.kept.trial import TrialFolder, read_trials, trial_id_of
from vbd.search.propose.listed import Listed
from vbd.search.run import _stop_on_sigterm
from vbd.search.tune import trial as tuning
from vbd.search.tune.handed_over import Workers
from vbd.search.tune.outage import fit
from vbd.search.tune.searcher import ProposalSearcher
from vbd.search.tune.tuner import Watch, ahead_of

CONFIG = TrainConfig()


class Told(Listed):
    """Proposes a list, and remembers how its trials ended."""

    def __init__(self, *configs: TrainConfig):
        super().__init__(configs)
        self.told: list[str] = []

    def tell(self, trial: Trial) -> None:
        self.told.append(trial.status)


@pytest.fixture
def folder(tmp_path: Path) -> TrialFolder:
    """Of a trial that runs, and that Tune knows as `t`."""
    folder = TrialFolder(str(tmp_path / "run"), trial_id_of(CONFIG))
    folder.begin(CONFIG, dataset="f" * 16, number=0)
    return folder


@pytest.fixture
def proposer() -> Told:
    return Told(CONFIG)


@pytest.fixture
def searcher(folder: TrialFolder, proposer: Told) -> ProposalSearcher:
    searcher = ProposalSearcher(proposer, folder.run, [], lambda trial: None, max_failures=1)
    assert searcher.suggest("t") is not None
    return searcher


class Store:
    """Out of reach for so many look-ups."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, away: int):
        self._away, self._exists = away, storage.exists
        monkeypatch.setattr(storage, "exists", self._look_up)
        monkeypatch.setattr("time.sleep", lambda seconds: None)

    def _look_up(self, location: str) -> bool:
        self._away -= 1
        if self._away >= 0:
            raise StoreError(f"{location}: cannot be looked up (it is away)")
        return self._exists(location)


def test_a_trial_whose_process_died_too_often_is_told_as_died(searcher: ProposalSearcher, proposer: Told) -> None:
    searcher.on_trial_complete("t", error=True)
    assert proposer.told == ["died"]
    assert not searcher.is_busy


def test_a_trial_that_ends_while_the_store_is_away_is_told_when_it_is_back(
    searcher: ProposalSearcher,
    proposer: Told,
    folder: TrialFolder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder.finish()
    Store(monkeypatch, away=2)
    searcher.on_trial_complete("t")
    assert proposer.told == ["finished"]
    assert searcher.fault is None
    assert capsys.readouterr().out.count("(it is away); tried again for") == 2


def test_a_store_that_stays_away_ends_the_search_and_the_trial_counts_as_running(
    searcher: ProposalSearcher, proposer: Told, folder: TrialFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "PATIENCE_SECONDS", 0)
    watch = Watch(searcher)
    assert not watch.stop_all()
    Store(monkeypatch, away=99)
    searcher.on_trial_complete("t", error=True)
    assert isinstance(searcher.fault, StoreError)
    assert watch.stop_all()
    assert proposer.told == []
    assert searcher.is_busy
    monkeypatch.undo()
    found = folder.read()
    assert found is not None
    assert found.status == "running"


def test_a_fault_of_its_surroundings_ends_the_search_and_not_the_trial(
    searcher: ProposalSearcher, proposer: Told, folder: TrialFolder
) -> None:
    searcher.on_trial_result("t", {"fault": "data: no dataset.json"})
    searcher.on_trial_complete("t", error=True)
    assert str(searcher.fault) == "data: no dataset.json"
    assert proposer.told == []
    found = folder.read()
    assert found is not None
    assert found.status == "running"


def test_a_fault_that_a_later_attempt_did_not_meet_is_forgotten(searcher: ProposalSearcher, proposer: Told) -> None:
    searcher.on_trial_result("t", {"fault": "data: no dataset.json"})
    searcher.on_trial_result("t", {"step": 3})
    searcher.on_trial_complete("t", error=True)
    assert searcher.fault is None
    assert proposer.told == ["died"]


# ---------------------------------------------------------------------------------------------------------- Tune itself


class Tuner:
    """Logs what Tune does and ends as it might."""

    def __init__(self, error: Exception | None = None, *, logged: tuple[str, str, Exception | None] | None = None):
        self._error, self._logged = error, logged

    def fit(self) -> None:
        if self._logged:
            name, text, error = self._logged
            logging.getLogger(name).error(text, exc_info=error)
        if self._error:
            raise self._error


def _fit(tuner: Any, *, fault: InputError | None = None) -> None:
    fit(tuner, "run", fault=lambda: fault)


def test_a_place_that_tune_cannot_write_to_is_told_in_one_line() -> None:
    with pytest.raises(
        StoreError, match=r"run/tune: cannot be written \(\[Errno 28\] no space\); choose another place"
    ):
        _fit(Tuner(OSError(28, "no space")))


def test_what_tune_stumbles_over_beside_a_fault_is_that_fault_and_else_its_own() -> None:
    _fit(Tuner(EOFError("a truncated pickle")), fault=StoreError("full"))
    with pytest.raises(EOFError):
        _fit(Tuner(EOFError("a truncated pickle")))


@pytest.fixture
def records() -> Iterator[list[logging.LogRecord]]:
    """What Tune's loggers let through; they hand nothing on by themselves."""
    found: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = found.append  # type: ignore[method-assign]
    loggers = [logging.getLogger(name) for name in ("ray.tune.execution.tune_controller", "ray.train._internal.syncer")]
    for logger in loggers:
        logger.addHandler(handler)
    yield found
    for logger in loggers:
        logger.removeHandler(handler)


def test_a_traceback_of_tune_is_left_out_where_a_line_tells_as_much(records: list[logging.LogRecord]) -> None:
    controller, syncer = "ray.tune.execution.tune_controller", "ray.train._internal.syncer"
    _fit(Tuner(logged=(controller, "Trial task failed", InputError("told already"))))
    assert records == []
    _fit(Tuner(logged=(syncer, "Last sync failed:\nTraceback (most recent call last):\n  File\nOSError: full\n", None)))
    assert records[-1].getMessage() == "Last sync failed: OSError: full"
    _fit(Tuner(logged=(controller, "Saving failed with:\n", OSError(28, "no space"))))
    assert records[-1].getMessage() == "Saving failed with: [Errno 28] no space"
    assert records[-1].exc_info is None
    _fit(Tuner(logged=(controller, "Trial task failed", ValueError("a mistake of ours"))))
    assert records[-1].exc_info is not None


class Ends:
    """Raises where Python can only tell of it."""

    def __init__(self, error: BaseException):
        self.error = error

    def __del__(self) -> None:
        raise self.error


def test_an_exit_that_cannot_be_raised_is_not_told_and_all_else_is(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda fault: told.append(type(fault.exc_value)))
    tuning.silence_exits.cache_clear()
    for _ in range(2):  # a process runs several trials, one after the other
        tuning.silence_exits()
    for error in (SystemExit(1), interrupted_lock(SystemExit(1)), ValueError("a fault"), KeyboardInterrupt()):
        Ends(error)  # gone at once
    assert told == [ValueError, KeyboardInterrupt]


def _stopped_by(error: Exception) -> None:
    with _stop_on_sigterm() as stopped:
        stopped.append(signal.SIGTERM)
        raise error


def test_sigterm_ends_what_is_inside_at_once_and_is_then_for_who_listened_before() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    asked = signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
    try:
        with _stop_on_sigterm() as stopped:
            signal.raise_signal(signal.SIGTERM)
            pytest.fail("it went on")
        assert stopped == [signal.SIGTERM]
        assert heard == [signal.SIGUSR1]  # Tune, too, is asked to stop
        signal.raise_signal(signal.SIGTERM)
        assert heard == [signal.SIGUSR1, signal.SIGTERM]
        with pytest.raises(KeyboardInterrupt), _stop_on_sigterm():
            raise KeyboardInterrupt  # of Ctrl-C
        _stopped_by(interrupted_lock(KeyboardInterrupt()))
        with pytest.raises(RuntimeError, match="ours"):
            _stopped_by(RuntimeError("ours"))
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGUSR1, asked)


# ------------------------------------------------------------------------------------------------- how far it looks ahead


def _handed_out(searcher: ProposalSearcher, *, first: int = 0) -> int:
    """How many trials Tune gets before it is told to ask again later."""
    count = 0
    while isinstance(searcher.suggest(f"t{first + count}"), dict):
        count += 1
    return count


def _seeds(count: int) -> list[TrainConfig]:
    return [TrainConfig(seed=seed) for seed in range(count)]


@pytest.mark.parametrize(
    ("cluster", "workers", "handed_out"),
    [
        (Cluster((Node({"CPU": 2}, {}),)), 1, 3),
        (Cluster((Node({"CPU": 8}, {}),)), 4, 3),
        (Cluster((), (NodeType("small", {"CPU": 2}, {}, 5),), 4), 1, 9),  # the nodes that may come, all four of them
        (Cluster((), is_open=True), 1, 33),  # nobody knows how many may come
        (Cluster(()), 1, 2),
    ],
)
def test_optuna_proposes_one_trial_more_than_there_is_or_may_be_room_for(
    cluster: Cluster, workers: int, handed_out: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vbd.cluster.placement.look", lambda: cluster)
    needs = Workers(workers, 1, 0, max_failures=0)
    search = SearchConfig("test", (), searcher="optuna")
    run = str(tmp_path)
    searcher = ProposalSearcher(Listed(_seeds(50)), run, [], lambda trial: None, ahead=ahead_of(search, needs))
    assert _handed_out(searcher) == handed_out == searcher.started
    searcher.on_trial_complete("t0")
    assert _handed_out(searcher, first=100) == 1
    # Whoever draws all at once, or has a list, may hand out any number.
    assert ahead_of(replace(search, searcher="random"), needs) is None
    assert _handed_out(ProposalSearcher(Listed(_seeds(50)), run, [], lambda trial: None)) == 50


def test_trials_that_cannot_be_trained_fail_at_once_and_the_others_are_handed_out(tmp_path: Path) -> None:
    run, ended = str(tmp_path), []
    searcher = ProposalSearcher(Listed(_seeds(4)), run, [], ended.append)

    def fail_at_once(config: TrainConfig, number: int) -> Trial | None:
        if config.seed % 2 == 0:
            return None
        folder = TrialFolder(run, trial_id_of(config))
        folder.begin(config, dataset="f" * 16, number=number)
        return folder.fail("ValueError: few")

    searcher.fail_at_once = fail_at_once
    assert _handed_out(searcher) == searcher.started == 2
    assert [(trial.config.seed, trial.number, trial.status, trial.reason) for trial in ended] == [
        (1, 1, "failed", "ValueError: few"),
        (3, 3, "failed", "ValueError: few"),
    ]
    assert searcher.suggest("t9") == Searcher.FINISHED


# ------------------------------------------------------------------------------------------------- an error that returns


def test_a_trial_whose_error_returns_at_the_same_step_ends_as_failed(
    prepared: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported = list[dict[str, Any]]()
    monkeypatch.setattr(tuning.tune, "report", reported.append)

    def attempt(error: Exception) -> None:
        def failing(*_: Any, **__: Any) -> None:
            error.add_note("at training step 3")
            raise error

        monkeypatch.setattr(tuning, "train", failing)
        drawn = {"proposal": {"config": {"seed": 5}, "until": CONFIG.steps, "hold": 0, "number": 0}}
        tuning.run_trial(drawn, location=prepared, run=str(tmp_path), options=RunOptions(device="cpu"))

    for error in (ValueError("few"), ConnectionResetError("by peer"), ConnectionResetError("by peer")):
        with pytest.raises(type(error)):
            attempt(error)
    found = read_trials(str(tmp_path))
    assert [trial.status for trial in found] == ["running"]
    attempt(ValueError("few"))
    (trial,) = read_trials(str(tmp_path))
    assert (trial.status, trial.reason) == ("failed", "ValueError: few (at step 3, twice)")
    assert [(report["failed"], report["step"]) for report in reported] == [(trial.reason, CONFIG.steps)]
