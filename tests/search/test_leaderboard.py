import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.search.trials import RCNN, config_of, trial_of
from vbd.data.prepared import open_dataset
from vbd.errors import InputError
from vbd.records import Trial
from vbd.search.kept.leaderboard import (
    Leaderboard,
    best_configs,
    format_leaderboard,
    ranked,
    read_leaderboard,
    write_leaderboard,
)


def _board(*trials: Trial, fingerprint: str = "f") -> Leaderboard:
    return Leaderboard("test", fingerprint, True, ranked(trials))


def _failed(seed: int, **fields: Any) -> Trial:
    return replace(trial_of(seed, math.nan), status="failed", reason="the loss is nan", steps=0, **fields)


def test_trials_without_a_score_come_last_and_equal_ones_by_id() -> None:
    low, high, equal = trial_of(1, 0.1), trial_of(2, 0.3), trial_of(3, 0.3)
    refused = replace(trial_of(4, 0.9), status="refused")
    order = [trial.trial_id for trial in ranked([_failed(5), low, refused, high, equal])]
    assert order[:3] == [*sorted([high.trial_id, equal.trial_id]), low.trial_id]
    assert set(order[3:]) == {refused.trial_id, _failed(5).trial_id}


def test_trials_survive_the_file(tmp_path: Path) -> None:
    rich = replace(
        trial_of(1, 0.3),
        metrics={"step": 40},
        history=[{"step": 20, "loss": 1.5}, {"step": 40, "loss": 1.0}],
        host="node-1",
        seconds=12.5,
        number=3,
        checkpoint=f"{tmp_path}/trials/one/step-00000040",
        detections=f"{tmp_path}/trials/one/out_of_fold.parquet",
    )
    board = _board(_failed(3), trial_of(2, 0.2), rich)
    write_leaderboard(str(tmp_path), board)
    again = read_leaderboard(str(tmp_path))
    assert again.trials[0] == rich
    assert again.trials[1] == replace(trial_of(2, 0.2), history=[])
    assert math.isnan(again.trials[2].score)
    assert (again.trials[2].status, again.trials[2].reason) == ("failed", "the loss is nan")
    moved = tmp_path.parent / "moved"
    tmp_path.rename(moved)
    assert read_leaderboard(str(moved)).trials[0].detections == f"{moved}/trials/one/out_of_fold.parquet"


def test_the_leaderboard_of_another_version_is_told(tmp_path: Path) -> None:
    write_leaderboard(str(tmp_path), _board(trial_of(1, 0.3)))
    file = tmp_path / "leaderboard.json"
    content = json.loads(file.read_text())
    assert content["schema"] == 2
    file.write_text(json.dumps(content | {"schema": 1}))
    with pytest.raises(InputError, match=r"leaderboard.json: schema 1, want 2; run the search again"):
        read_leaderboard(str(tmp_path))
    del content["trials"][0]["status"], content["trials"][0]["score"]
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"leaderboard.json: no field trials\[0\].score; was it edited"):
        read_leaderboard(str(tmp_path))


@pytest.mark.parametrize("place", ["../other/trials/one", "/another/place", "s3://bucket/one"])
def test_a_path_out_of_the_run_folder_is_refused(tmp_path: Path, place: str) -> None:
    write_leaderboard(str(tmp_path), _board(trial_of(1, 0.3)))
    file = tmp_path / "leaderboard.json"
    file.write_text(file.read_text().replace('"checkpoint": ""', f'"checkpoint": "{place}"'))
    with pytest.raises(InputError, match=rf"trials\[0\].checkpoint is '{place}'; want a path below this folder"):
        read_leaderboard(str(tmp_path))


def test_a_folder_without_a_leaderboard_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no leaderboard\.json"):
        read_leaderboard(str(tmp_path))


# --------------------------------------------------------------------------------------------------------------- people


def _lines(*trials: Trial) -> tuple[list[str], list[str]]:
    """The head of the table and the cells of its lines; cells are two spaces apart."""
    _, head, *lines = format_leaderboard(_board(*trials)).splitlines()
    return head.split(), lines


def test_the_table_says_synthetic_and_why_a_trial_failed() -> None:
    text = format_leaderboard(_board(_failed(1)))
    assert "(synthetic)" in text.splitlines()[0]
    assert "failed: the loss is nan" in text
    assert "ran 0 of 40" in text
    assert "best at" not in text


def test_the_table_tells_the_best_step_and_how_far_a_trial_ran() -> None:
    stopped = replace(
        trial_of(1, 0.3),
        steps=10,
        history=[{"step": 10}, {"step": 20}],
        status="stopped",
        reason="halving: 3rd of 3 at step 20",
    )
    _, (line,) = _lines(stopped)
    assert "best at 10, ran 20 of 40" in line
    assert line.endswith("stopped: halving: 3rd of 3 at step 20")


def test_the_table_tells_size_time_and_schedule() -> None:
    phases = {"phase_steps": (10, 20), "phase_strengths": (0.36, 0.29), "phase_rates": (1.2, 0.8)}
    scheduled = trial_of(1, 0.3, policy="B", strength=0.3, learning_rate=1e-3, image_size=320, **phases)
    head, (first, second) = _lines(replace(scheduled, seconds=90.4), replace(trial_of(2, 0.2), seconds=600))
    assert head[3:6] == ["size", "policy", "strength"]
    cells = first.split()
    assert cells[:8] == [
        scheduled.trial_id,
        *("yolox", "nano", "320", "B", "0.3>0.36>0.29", "0.001>0.0012>0.0008", "0.3000"),
    ]
    assert "90 s" in first
    assert second.split()[3:7] == ["512", "A", "-", "0.001"]
    assert "10.0 min" in second


def test_the_host_is_told_where_there_are_several() -> None:
    one, other = (replace(trial_of(seed, 0.1 * seed), host=f"node-{seed}") for seed in (1, 2))
    assert "host" not in _lines(one, one)[0]
    head, lines = _lines(one, other)
    assert "host" in head
    assert "node-2" in lines[0]
    assert "node-1" in lines[1]


# -------------------------------------------------------------------------------------------- what is trained from it


def test_the_best_configurations_of_each_family_are_trained_again(prepared: str, tmp_path: Path) -> None:
    run, fingerprint = str(tmp_path), open_dataset(prepared).fingerprint
    trials = [trial_of(1, 0.5), trial_of(2, 0.4), trial_of(3, 0.3, policy="E"), trial_of(4, 0.1, **RCNN), _failed(5)]
    write_leaderboard(run, _board(*trials, fingerprint=fingerprint))
    assert best_configs(run, prepared, top=2) == {
        "yolox-1": config_of(1),
        "yolox-2": config_of(3, policy="E"),  # the second best differs from the best in its seed alone
        "faster_rcnn-1": config_of(4, **RCNN),
    }
    assert list(best_configs(run, prepared, top=1, families=("faster_rcnn",))) == ["faster_rcnn-1"]
    with pytest.raises(InputError, match="no trial has a score"):
        best_configs(run, prepared, top=1, families=("fcos",))
    with pytest.raises(InputError, match="--top 0: want 1 or more"):
        best_configs(run, prepared, top=0)
    write_leaderboard(run, _board(*trials, replace(trial_of(6, 0.6), status="unfinished"), fingerprint=fingerprint))
    with pytest.raises(InputError, match="the search was stopped; run it to its end first"):
        best_configs(run, prepared, top=1)
    write_leaderboard(run, _board(*trials))
    with pytest.raises(InputError, match="a search on dataset f, but"):
        best_configs(run, prepared, top=1)
