import math
from dataclasses import replace
from pathlib import Path

import pytest

from vbd import storage
from vbd.config import TrainConfig, config_hash
from vbd.data.prepared import open_dataset
from vbd.errors import InputError
from vbd.records import Trial, detections_to_table
from vbd.search.leaderboard import (
    Leaderboard,
    format_leaderboard,
    keep_best,
    prove,
    ranked,
    read_leaderboard,
    write_leaderboard,
)
from vbd.training.checkpoint import write_checkpoint
from vbd.training.members import read_members


def _trial(name: str, score: float, folder: str = "", **fields: object) -> Trial:
    config = replace(TrainConfig(steps=10), **fields)
    return Trial(name, config, config_hash(config), score, 10, folder)


def _with_checkpoint(trial: Trial, prepared: str, folder: Path) -> Trial:
    write_checkpoint(
        folder,
        config=trial.config,
        dataset=open_dataset(prepared),
        weights={},
        state={},
        step=trial.steps,
        metrics={"map_40_findings": trial.score},
    )
    storage.write_table(str(folder / "out_of_fold.parquet"), detections_to_table([]))
    return replace(trial, checkpoint=str(folder))


def _board(*trials: Trial, fingerprint: str = "f") -> Leaderboard:
    return Leaderboard("test", fingerprint, True, ranked(trials))


def test_failed_trials_come_last_and_survive_the_file(tmp_path: Path) -> None:
    failed = replace(_trial("x", math.nan), status="failed", reason="the loss is nan")
    board = _board(failed, _trial("b", 0.1), _trial("a", 0.3))
    write_leaderboard(str(tmp_path), board)
    again = read_leaderboard(str(tmp_path))
    assert [trial.trial_id for trial in again.trials] == ["a", "b", "x"]
    assert math.isnan(again.trials[-1].score)
    assert again.trials[:2] == tuple(replace(trial, history=[]) for trial in board.trials[:2])


def test_the_table_says_synthetic_and_why_a_trial_failed() -> None:
    text = format_leaderboard(_board(replace(_trial("x", math.nan), status="failed", reason="no memory")))
    assert "(synthetic)" in text.splitlines()[0]
    assert "failed: no memory" in text


def test_a_trial_whose_checkpoint_has_another_config_is_refused(prepared: str, tmp_path: Path) -> None:
    good = _with_checkpoint(_trial("a", 0.5), prepared, tmp_path / "a")
    assert prove(good) == good
    other = _trial("b", 0.5, good.checkpoint, seed=7)
    assert prove(other).status == "refused"
    assert math.isnan(prove(other).score)
    assert "not " + other.config_hash in prove(other).reason


def test_a_trial_that_claims_another_score_or_step_is_refused(prepared: str, tmp_path: Path) -> None:
    good = _with_checkpoint(_trial("a", 0.5), prepared, tmp_path / "a")
    assert prove(replace(good, score=0.6)).status == "refused"
    assert prove(replace(good, steps=9)).status == "refused"


def test_a_broken_checkpoint_is_refused(prepared: str, tmp_path: Path) -> None:
    good = _with_checkpoint(_trial("a", 0.5), prepared, tmp_path / "a")
    (tmp_path / "a" / "config.json").write_text("{")
    assert prove(good).status == "refused"


def test_the_best_of_each_family_are_kept(prepared: str, tmp_path: Path) -> None:
    dataset = open_dataset(prepared)
    rcnn = {"detector": "faster_rcnn", "variant": "resnet50"}
    trials = [
        _trial("a", 0.5),
        _trial("b", 0.7),
        _trial("c", 0.6),
        _trial("d", 0.1, **rcnn),
        _trial("e", math.nan, **rcnn),
    ]
    stored = [_with_checkpoint(t, prepared, tmp_path / "trials" / t.trial_id) for t in trials]
    run = str(tmp_path / "run")
    kept = keep_best(run, _board(*stored, fingerprint=dataset.fingerprint), per_family=2)
    assert [(member.name, member.trial_id) for member in kept] == [
        ("yolox-1", "b"),
        ("yolox-2", "c"),
        ("faster_rcnn-1", "d"),
    ]
    assert read_members(f"{run}/best", dataset) == kept
    moved = tmp_path / "moved"
    Path(run).rename(moved)
    assert read_members(f"{moved}/best", dataset)[0].folders == (f"{moved}/best/yolox-1",)
    with pytest.raises(InputError, match="trained on dataset"):
        read_members(f"{moved}/best", replace(dataset, fingerprint="other"))


def test_a_search_without_any_score_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no trial of the search ended with a score"):
        keep_best(str(tmp_path), _board(_trial("a", math.nan)), per_family=1)


def test_a_folder_without_a_leaderboard_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no leaderboard\.json"):
        read_leaderboard(str(tmp_path))
