"""A search as Tune runs it: with real trials of some steps, and with made-up ones whose scores are known."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ray import tune

from tests.search.trials import FakeTrials
from vbd import storage
from vbd.config import Candidate, RunOptions, SearchConfig, TrainConfig
from vbd.errors import InputError
from vbd.evaluation.score import SCORE
from vbd.records import Trial
from vbd.search.cost.forecast import read_record
from vbd.search.kept.keep import Keeper
from vbd.search.kept.leaderboard import read_leaderboard
from vbd.search.kept.trial import TrialFolder, read_trials, trial_id_of
from vbd.search.propose.listed import Listed
from vbd.search.run import run_search
from vbd.search.stop.schedule import build_scheduler
from vbd.search.tune.handed_over import Workers, proposal_of
from vbd.search.tune.searcher import ProposalSearcher
from vbd.search.tune.tuner import Watch, build_tuner, needs_of
from vbd.training.checkpoint import read_info

TINY = TrainConfig(
    detector="yolox", variant="nano", image_size=64, batch_size=4, steps=6, report_every=3, warmup_steps=1
)
SEARCH = SearchConfig(
    preset="test",
    candidates=(Candidate(TINY, choices={"policy": ("A", "E")}, ranges={"learning_rate": (1e-3, 4e-3)}, trials=3),),
    scheduler="fifo",
    keep_per_family=1,
)
CPU = RunOptions(device="cpu")


def _run(search: SearchConfig, prepared: str, root: Path, **more: Any) -> list[Trial]:
    board = run_search(search, data=prepared, storage_root=str(root), name="run", options=CPU, **more)
    return list(board.trials)


def _attempts(trials: list[Trial]) -> dict[str, set[float]]:
    return {trial.trial_id: {report["attempt_started"] for report in trial.history} for trial in trials}


@pytest.fixture(scope="module")
def searched(prepared: str, ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of three trials that have run to their end."""
    root = tmp_path_factory.mktemp("runs")
    _run(SEARCH, prepared, root)
    return root


def test_every_trial_stands_on_the_leaderboard_with_what_it_took(searched: Path) -> None:
    trials = read_leaderboard(str(searched / "run")).trials
    assert len(trials) == 3
    for trial in trials:
        assert trial.status == "finished"
        assert [report["step"] for report in trial.history] == [3, 6]
        assert trial.trial_id == trial_id_of(trial.config)
        assert trial.host
        assert trial.device == "cpu"
        assert trial.seconds > 0
        assert trial.peak_memory_mb > 100
        assert storage.exists(trial.detections)


def test_the_best_is_kept_for_the_ensemble_and_of_the_others_the_detections(searched: Path) -> None:
    run = searched / "run"
    best, *others = read_leaderboard(str(run)).trials
    (member,) = storage.read_object(str(run / "best" / "manifest.json"))["members"]
    assert member["trial_id"] == best.trial_id
    assert read_info(str(run / "best" / "yolox-1")).config_hash == best.config_hash
    assert [trial.checkpoint for trial in others] == ["", ""]
    assert {path.parent.name for path in (run / "trials").glob("*/step-*")} == {best.trial_id}


def test_forecast_json_tells_what_was_expected_and_what_it_took(searched: Path) -> None:
    record = read_record(str(searched / "run"))
    assert record is not None
    assert record.actual is not None
    assert record.before.trials == 3
    assert record.before.expected > 0
    assert record.actual.device_hours > 0


def test_the_same_search_again_trains_nothing(searched: Path, prepared: str) -> None:
    before = read_trials(str(searched / "run"))
    board = (searched / "run" / "leaderboard.json").read_bytes()
    again = _run(SEARCH, prepared, searched)
    assert _attempts(again) == _attempts(before)
    assert (searched / "run" / "leaderboard.json").read_bytes() == board


def test_another_search_in_its_folder_is_refused_unless_it_may_extend_it(
    searched: Path, prepared: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = read_trials(str(searched / "run"))
    wider = replace(SEARCH, candidates=(replace(SEARCH.candidates[0], trials=4),))
    with pytest.raises(
        InputError, match=r"another search \(candidates\[0\].trials was 3, is 4\); choose another --name"
    ):
        _run(wider, prepared, searched)
    extended = _run(wider, prepared, searched, extend=True)
    assert len(extended) == 4
    kept = {trial.trial_id for trial in before}
    assert {i: a for i, a in _attempts(extended).items() if i in kept} == _attempts(before)
    assert "going on with the search; 3 trials have ended, 0 go on" in capsys.readouterr().out


def test_a_folder_with_other_things_in_it_is_no_run(prepared: str, ray_session: None, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("")
    with pytest.raises(InputError, match="not empty and holds no run"):
        _run(SEARCH, prepared, tmp_path)
    with pytest.raises(InputError, match=r"--name '../x'"):
        run_search(SEARCH, data=prepared, storage_root=str(tmp_path), name="../x", options=CPU)


def test_more_gpus_than_there_are_are_refused_before_anything_is_written(
    prepared: str, ray_session: None, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="GPU"):
        needs_of(replace(SEARCH, gpus_per_trial=1), RunOptions())
    assert needs_of(SEARCH, CPU) == Workers(1, 1, 0, SEARCH.max_failures)


def test_a_child_of_a_population_begins_at_its_parents_checkpoint(
    prepared: str, ray_session: None, tmp_path: Path
) -> None:
    search = replace(SEARCH, scheduler="population", generation_share=0.5)
    trials = _run(search, prepared, tmp_path)
    (child,) = [trial for trial in trials if trial.config.phase_steps]
    (stopped,) = [trial for trial in trials if trial.status == "stopped"]
    assert child.config.phase_steps == (3,)
    assert [report["step"] for report in child.history] == [6]
    assert stopped.reason.endswith("took its place at step 3")
    assert [report["step"] for report in stopped.history] == [3]
    assert sorted(trial.status for trial in trials) == ["finished", "finished", "finished", "stopped"]


# -------------------------------------------------------------------------------------------------- trials of known scores


def _made_up(drawn: dict[str, Any], *, run: str, scratch: str, data: str) -> None:
    """A trial whose score grows with its steps, the faster the smaller its seed; seed 9 never reports at all."""
    proposal, _ = proposal_of(drawn)
    config = proposal.config
    if config.seed == 9:
        raise RuntimeError("no such luck")
    trials = FakeTrials(run, Path(scratch) / str(config.seed), data)
    trials.begin(config)
    for step in range(config.report_every, config.steps + 1, config.report_every):
        score = (1 - 0.1 * config.seed) * step / config.steps
        trials.report(config, step=step, score=score)
        if step == config.steps:
            trials.folder(config).finish()
        tune.report({"step": step, SCORE: score})


def _search_made_up(
    seeds: list[int], scratch: Path, data: str, *, scheduler: Any, max_failures: int = 0, **more: Any
) -> dict[int, Trial]:
    """The trials by seed, after Tune has run them one after the other."""
    run = str(scratch / "run")
    base = TrainConfig(steps=40, report_every=10)
    search = replace(SEARCH, candidates=(Candidate(base),), scheduler=scheduler, reduction=2, **more)
    proposer = Listed([replace(base, seed=seed) for seed in seeds])
    searcher = ProposalSearcher(proposer, run, [], Keeper(run, per_family=1).tell, max_failures=max_failures)
    watch = Watch(searcher)
    tuner = build_tuner(
        tune.with_parameters(_made_up, run=run, scratch=str(scratch), data=data),
        Workers(1, 2, 0, max_failures),
        searcher=searcher,
        scheduler=build_scheduler(search, [], on_stop=watch.on_stop),
        watch=watch,
        callbacks=[],
        run=run,
    )
    tuner.fit()
    assert not searcher.is_busy
    return {trial.config.seed: trial for trial in read_trials(run)}


def test_halving_stops_the_weak_and_keeps_the_weights_of_the_best_alone(
    prepared: str, ray_session: None, tmp_path: Path
) -> None:
    trials = _search_made_up([2, 1, 5, 0, 6], tmp_path, prepared, scheduler="halving")
    assert {seed: trial.status for seed, trial in trials.items()} == {
        **{2: "finished", 1: "finished", 0: "finished"},
        **{5: "stopped", 6: "stopped"},
    }
    assert [report["step"] for report in trials[5].history] == [10]
    assert trials[5].reason.startswith("halving: 0.1250 at step 10 is below the cut of")
    assert [seed for seed, trial in trials.items() if trial.checkpoint] == [0]
    assert all(storage.exists(trial.detections) for trial in trials.values())


def test_a_trial_whose_process_dies_does_not_end_the_others(prepared: str, ray_session: None, tmp_path: Path) -> None:
    trials = _search_made_up([9, 3], tmp_path, prepared, scheduler="fifo", max_failures=1)
    assert 9 not in trials  # it had not even begun
    assert trials[3].status == "finished"
    assert math.isclose(trials[3].score, 0.7)
    assert TrialFolder(str(tmp_path / "run"), trials[3].trial_id).read() == trials[3]
