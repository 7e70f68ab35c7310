import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from tests.reports.conftest import BIG, CARDIOMEGALY
from tests.reports.reading import figures, loads, tables
from vbd import storage
from vbd.boxes import as_boxes
from vbd.config import TrainConfig, config_hash
from vbd.errors import InputError
from vbd.records import Detections, Trial, detections_to_table
from vbd.reports.search import answer_for_family, write_search_report
from vbd.reports.search_figures import busy_share, spans
from vbd.search.leaderboard import Leaderboard, ranked, write_leaderboard
from vbd.training.members import Member, write_members


def trial(name: str, score: float, *, start: float = 0, status: str = "finished", reason: str = "", **fields) -> Trial:
    config = TrainConfig(detector="yolox", variant="nano", steps=20, report_every=10, **fields)
    steps = 10 if status == "stopped" else 20
    history = [
        {"step": step, "map_40_findings": score * step / steps, "loss": 2.0 - step / 20, "seconds": step * 1.0}
        | {"timestamp": 1_000_000.0 + start + step}
        for step in range(10, steps + 1, 10)
    ]
    history = [] if status == "failed" else history
    return Trial(name, config, config_hash(config), score, steps, "", status, reason, {}, history)


TRIALS = (
    trial("one", 0.3, policy="A"),
    trial("two", 0.2, policy="E", strength=0.5, learning_rate=3e-3, start=5),
    trial("three", 0.1, policy="E", strength=1.0, status="stopped", start=20),
    trial("four", math.nan, status="failed", reason="loss is <script>nan</script>"),
)


@pytest.fixture
def run(tmp_path: Path) -> str:
    folder = str(tmp_path / "run")
    write_leaderboard(folder, Leaderboard("smoke", "f00d", True, ranked(TRIALS)))
    return folder


def page_of(run: str, tmp_path: Path, **options: str) -> str:
    write_search_report(run, str(tmp_path / "report.html"), **options)
    return (tmp_path / "report.html").read_text()


def test_the_report_is_self_contained_and_says_synthetic(run: str, tmp_path: Path) -> None:
    page = page_of(run, tmp_path)
    assert loads(page) == []
    assert "Synthetic data." in page
    assert "<script>nan" not in page
    assert ["loss is <script>nan</script>", "failed", "1"] in tables(page)["Why trials have no score"]


def test_the_leaderboard_keeps_its_order(run: str, tmp_path: Path) -> None:
    rows = tables(page_of(run, tmp_path))["All trials, best first"]
    assert [row[0] for row in rows] == ["trial", "one", "two", "three", "four"]
    assert [row[7] for row in rows[1:]] == ["0.300", "0.200", "0.100", "-"]
    assert [row[4] for row in rows[1:]] == ["0", "0.5", "1", "0"]  # policy A has no strength
    ended = tables(page_of(run, tmp_path))["Trials by how they ended"]
    assert ended[1:] == [["finished", "2"], ["stopped", "1"], ["failed", "1"]]


def test_the_figures_hold_the_history(run: str, tmp_path: Path) -> None:
    learning, strength, parallel, gantt = figures(page_of(run, tmp_path))
    assert [trace["y"] for trace in learning["data"]][:4] == [[0.15, 0.3], [1.5, 1.0], [0.1, 0.2], [1.5, 1.0]]
    assert {(trace["name"], *trace["x"], *trace["y"]) for trace in strength["data"]} == {
        ("policy A", 0, 0.3),
        ("policy E", 0.5, 1, 0.2, 0.1),
    }
    assert strength["data"][1]["marker"]["symbol"][1].endswith("-open")
    assert len(parallel["data"]) == 3
    assert parallel["layout"]["xaxis"]["ticktext"] == ["policy", "strength", "learning_rate", "map_40_findings"]
    assert gantt["data"][0]["y"] == ["one", "two", "three"]
    np.testing.assert_allclose(np.array(gantt["data"][0]["base"]) * 60, [0, 5, 20])
    np.testing.assert_allclose(np.array(gantt["data"][0]["x"]) * 60, [20, 20, 10])


def test_busy_devices_are_counted() -> None:
    running = spans(TRIALS)
    assert [span.trial.trial_id for span in running] == ["one", "two", "three"]
    most, busy = busy_share(running)
    assert most == 2
    assert busy == pytest.approx(50 / 60)


def test_too_few_trials_cannot_tell_the_best_augmentation(run: str, tmp_path: Path) -> None:
    answer = "yolox: which augmentation is best cannot be told; at least 3 finished trials of two policies are needed"
    assert answer in page_of(run, tmp_path)
    assert answer_for_family("yolox", TRIALS).endswith("(finished: A: 1, E: 1).")


@pytest.mark.parametrize(("gap", "is_told"), [(0.2, True), (0.001, False)])
def test_only_a_gap_beyond_the_noise_is_an_answer(gap: float, is_told: bool) -> None:
    noise = (-0.02, 0.0, 0.02)
    trials = [
        trial(f"{policy}{n}", base + n, policy=policy) for policy, base in (("A", 0.3), ("E", 0.3 + gap)) for n in noise
    ]
    answer = answer_for_family("yolox", trials)
    assert "policy E has the best mean" in answer
    assert ("cannot be told" in answer) is not is_told


def test_a_stopped_trial_does_not_count_for_the_answer() -> None:
    trials = [trial(f"{policy}{n}", 0.1, policy=policy, status="stopped") for policy in "AE" for n in range(3)]
    assert "(finished: none)" in answer_for_family("yolox", trials)


def test_a_run_without_a_single_score_has_a_report(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    write_leaderboard(run, Leaderboard("smoke", "f00d", False, TRIALS[3:]))
    page = page_of(run, tmp_path)
    assert "No trial ended with a score" in page
    assert "Synthetic" not in page


def test_kept_checkpoints_get_intervals(run: str, dataset: str, tmp_path: Path) -> None:
    folder = f"{run}/best/yolox-1"
    found = Detections("a", as_boxes([BIG]), np.array([0.9], np.float32), np.array([CARDIOMEGALY]))
    storage.write_table(f"{folder}/out_of_fold.parquet", detections_to_table([found, Detections("c")]))
    write_members(f"{run}/best", [Member("yolox-1", "one", 0.3, (folder,))], "f00d", synthetic=True)
    page = page_of(run, tmp_path, data=dataset)
    rows = tables(page)["All trials, best first"]
    assert rows[0][8] == "95 % interval"
    low, high = map(float, rows[1][8].split(" to "))
    assert 0 <= low <= 0.5 <= high <= 1
    assert rows[2][8] == ""
    assert figures(page)[1]["data"][0]["error_y"]["symmetric"] is False


def test_the_ensemble_is_shown_when_there_is_one(run: str, tmp_path: Path) -> None:
    def scores(value: float) -> dict[str, object]:
        return {"map_40": value, "map_40_findings": value, "per_class": {"ILD": value, "Nodule/Mass": None}}

    content = {
        "weights": {"yolox-1": 1.0},
        "single_scores": {"efficientdet-1": 0.2, "yolox-1": 0.3},
        "out_of_fold": scores(0.35),
        "test": {"yolox-1": scores(0.25), "ensemble": scores(0.31)},
        "gain": {
            "fused": 0.33,
            "single": 0.3,
            "interval": {"estimate": 0.03, "low": -0.01, "high": 0.05},
            "verdict": "undecided",
        },
    }
    storage.write_json(f"{run}/ensemble.json", content)
    page = page_of(run, tmp_path)
    rows = {row[0]: row[1:] for row in tables(page)["The ensemble and its members"]}
    assert rows["yolox-1"] == ["1.000", "0.300", "0.250", "0.250"]
    assert rows["efficientdet-1"] == ["-", "0.200", "-", "-"]
    assert rows["ensemble"] == ["1.000", "0.350", "0.310", "0.310"]
    assert tables(page)["Average precision of each class on the test part"][2] == ["Nodule/Mass", "-", "-"]
    assert "a gain of 0.030 (95 % interval -0.010 to 0.050); which of the two is better cannot be told." in page


def test_an_ensemble_whose_test_truth_is_not_known_is_shown(run: str, tmp_path: Path) -> None:
    storage.write_json(f"{run}/ensemble.json", {"single_scores": {"<b>": 0.3}, "test": {}})
    assert [row[0] for row in tables(page_of(run, tmp_path))["The ensemble and its members"]] == [
        "model",
        "<b>",
        "ensemble",
    ]


def test_a_folder_without_a_search_is_a_mistake_of_the_user(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no leaderboard\.json"):
        write_search_report(str(tmp_path), str(tmp_path / "report.html"))


def test_another_dataset_is_refused(run: str, dataset: str, tmp_path: Path) -> None:
    write_members(f"{run}/best", [Member("yolox-1", "one", 0.3, (f"{run}/best/yolox-1",))], "beef", synthetic=True)
    with pytest.raises(InputError, match="trained on dataset beef"):
        page_of(run, tmp_path, data=dataset)


def test_members_of_a_trial_differ_only_in_what_varied() -> None:
    assert dataclasses.replace(TRIALS[0].config, policy="E", strength=0.5, learning_rate=3e-3) == TRIALS[1].config
