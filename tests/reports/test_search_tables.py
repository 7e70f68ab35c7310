import dataclasses
import math
from pathlib import Path

import pytest

from tests.reports.searches import BASES, STARTED, history_of, search_of, trial_of
from vbd import storage
from vbd.config import TrainConfig
from vbd.ensemble.normal.gates import Gate
from vbd.ensemble.normal.no_finding import NoFinding
from vbd.ensemble.recipe import SCHEMA, Recipe
from vbd.ensemble.scores.calibrate import Calibration
from vbd.ensemble.scores.curves import Curve
from vbd.errors import InputError
from vbd.fusion.detections import FusionOptions
from vbd.records import Trial
from vbd.reports.page import Section, Table
from vbd.reports.search.tables import ensemble, leaderboard, states
from vbd.search.kept.leaderboard import ranked

YOLOX = dataclasses.replace(BASES[0], policy="E", strength=0.5)


def table(section: Section, place: int = 0) -> Table:
    found = [block for block in section.blocks if isinstance(block, Table)][place]
    assert all(len(row) == len(found.columns) for row in found.rows)
    return found


def test_a_trial_is_told_whole() -> None:
    phases = {"phase_steps": (2_000,), "phase_strengths": (0.4,), "phase_rates": (0.8,)}
    config = dataclasses.replace(YOLOX, **phases)
    history = history_of(config, 0.3, start=STARTED, steps=4_000)
    reason = "halving: 0.1 at step 4,000"
    one = trial_of(config, 0.3, history=history, status="stopped", reason=reason)
    found = table(leaderboard([one], {one.trial_id: (0.25, 0.351)}))
    assert dict(zip(found.columns, found.rows[0], strict=True)) == {
        "trial": one.trial_id,
        "map_40_findings (95 % interval)": "0.300 (0.250 to 0.351)",
        "detector": "yolox",
        "variant": "s",
        "policy": "E",
        "strength": "0.5, from 2,000: 0.4",
        "image size": "640",
        "learning rate": "0.001, from 2,000: ×0.8",
        "best step": "4,000/8,000",
        "time": "17 min",
        "host": "gpu\N{NON-BREAKING HYPHEN}node\N{NON-BREAKING HYPHEN}1",
        "status": "stopped: halving",
    }


def test_trials_without_an_interval_are_counted() -> None:
    one, two = trial_of(YOLOX, 0.3), trial_of(BASES[1], 0.2)
    unknown = trial_of(BASES[2], 0.1)
    section = leaderboard([one, two, unknown], {one.trial_id: (0.2, 0.4), unknown.trial_id: (math.nan, math.nan)})
    assert [row[1] for row in table(section).rows] == ["0.300 (0.200 to 0.400)", 0.2, 0.1]
    assert any("1 trials with a score were not measured" in str(block) for block in section.blocks)
    assert table(leaderboard([one], {})).columns[1] == "map_40_findings"


def test_a_failed_trial_has_no_score_that_counts() -> None:
    one = trial_of(YOLOX, 0.3, status="failed", reason="loss is nan")
    assert math.isnan(float(table(leaderboard([one], {one.trial_id: (0.2, 0.4)})).rows[0][1]))


def test_a_long_board_is_cut_to_its_best_hundred() -> None:
    trials = ranked(search_of(130))
    found = table(leaderboard(trials, {}))
    assert found.caption == "The best 100 of 130 trials, best first"
    assert [row[0] for row in found.rows] == [trial.trial_id for trial in trials[:100]]


def test_a_long_reason_is_cut_in_the_board_and_whole_below() -> None:
    one = trial_of(YOLOX, math.nan, status="failed", reason="x" * 200)
    assert len(str(table(leaderboard([one], {})).rows[0][-1])) == len("failed: ") + 50
    assert table(states([one]), 1).rows == [("x" * 200, "failed", 1)]


def test_equal_reasons_are_counted_and_many_are_cut() -> None:
    def failed(seed: int, reason: str, status: str = "failed") -> Trial:
        return trial_of(TrainConfig(seed=seed), math.nan, status=status, reason=reason)

    stopped = [failed(i, f"halving: 0.{i} at step 10", "stopped") for i in range(3)]
    section = states([*stopped, *(failed(i, f"fault {i}") for i in range(60)), trial_of(YOLOX, 0.3)])
    assert table(section).rows == [("failed", 60), ("stopped", 3), ("finished", 1)]
    assert table(section, 1).rows[0] == ("halving", "stopped", 3)
    assert len(table(section, 1).rows) == 50
    assert section.blocks[-1] == "And 11 more reasons."


def test_no_trials_make_empty_tables() -> None:
    assert table(leaderboard([], {})).rows == []
    assert table(states([])).rows == []


@pytest.mark.parametrize(
    ("verdict", "words"),
    [("undecided", "which of the two is better cannot be told"), ("ensemble", "the ensemble is better")],
)
def test_the_ensemble_is_shown_when_there_is_one(tmp_path: Path, verdict: str, words: str) -> None:
    def scores(value: float) -> dict[str, object]:
        return {"map_40": value, "map_40_findings": value, "per_class": {"ILD": value, "Nodule/Mass": None}}

    assert ensemble(str(tmp_path)) == []
    calibrations = {"yolox-1": Calibration(Curve("beta", coefficients=(1.0, 1.0, 0.0)), {})}
    recipe = Recipe({"yolox-1": 1.0}, FusionOptions(), calibrations, (), NoFinding("boxes", (1.0, 1.0), 0.0), Gate())
    interval = {"estimate": 0.03, "low": -0.01, "high": 0.05}
    content = {
        "schema": SCHEMA,
        "recipe": recipe.to_json(),
        "single_scores": {"efficientdet-1": 0.2, "yolox-1": 0.3},
        "out_of_fold": scores(0.35),
        "test": {"yolox-1": scores(0.25), "ensemble": scores(0.31)},
        "gain": {"fused": 0.33, "single": 0.3, "interval": interval, "verdict": verdict},
    }
    storage.write_json(f"{tmp_path}/ensemble.json", content)
    (section,) = ensemble(str(tmp_path))
    members, classes = table(section), table(section, 1)
    assert members.rows[0] == ("yolox-1", 1.0, 0.3, 0.25, 0.25)
    assert members.rows[2] == ("ensemble", 1.0, 0.35, 0.31, 0.31)
    assert [str(cell) for cell in members.rows[1]] == ["efficientdet-1", "nan", "0.2", "nan", "nan"]
    assert dict(zip(classes.columns, classes.rows[0], strict=True)) == {
        "class": "ILD",
        "yolox-1": 0.25,
        "ensemble": 0.31,
    }
    assert f"a gain of 0.030 (95 % interval -0.010 to 0.050); {words}." in str(section.blocks[0])


def test_an_ensemble_whose_test_truth_is_not_known_is_shown(tmp_path: Path) -> None:
    storage.write_json(f"{tmp_path}/ensemble.json", {"schema": SCHEMA, "single_scores": {"<b>": 0.3}, "test": {}})
    (section,) = ensemble(str(tmp_path))
    assert [row[0] for row in table(section).rows] == ["<b>", "ensemble"]
    assert len(section.blocks) == 1


def test_an_ensemble_of_another_version_is_refused_in_one_line(tmp_path: Path) -> None:
    storage.write_json(f"{tmp_path}/ensemble.json", {"schema": 1, "weights": {"yolox-1": 1.0}})
    with pytest.raises(InputError, match=r"ensemble.json: schema 1, want \d; to make the ensemble, run: "):
        ensemble(str(tmp_path))
