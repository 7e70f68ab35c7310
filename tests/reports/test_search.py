import dataclasses
import html
import math
import re
from pathlib import Path

import pytest

from tests.reports.reading import figures, loads, tables
from tests.reports.searches import (
    BASES,
    STARTED,
    history_of,
    search_of,
    trial_of,
    with_detections,
    write_board,
    write_trials,
)
from tests.reports.studies import study_trials
from vbd.config import TrainConfig
from vbd.reports.search.page import write_search_report
from vbd.search.cost.forecast import Devices, Forecast, Record, write_record

YOLOX = BASES[0]
HTML = "loss is <script>alert(1)</script> & <b>nan</b>"
# In the order of the page; the parts that need the truth of the dataset, and the forecast, are left out.
ALWAYS = [
    *("In short", "Leaderboard", "Augmentation strength", "Importance of the fields", "Hyperparameters"),
    *("Learning curves", "Use of the devices", "How the trials ended"),
]


def page_of(run: str, **options: str) -> str:
    output = Path(run) / "report.html"
    write_search_report(run, str(output), **options)
    return output.read_text()


def titles(page: str) -> list[str]:
    return re.findall(r'<h2 id="s\d+">(.*?)</h2>', page)


def short(page: str) -> str:
    return html.unescape(page.split('<h2 id="s1">')[1].split("<section")[0])


def test_the_page_stands_by_itself_and_says_synthetic(tmp_path: Path) -> None:
    page = page_of(write_board(str(tmp_path), search_of(9)))
    assert loads(page) == []
    assert "Synthetic data." in page
    assert titles(page) == ALWAYS
    assert "give the prepared dataset with --data" in short(page)
    assert "9 trials: 6 finished, 2 stopped, 1 failed." in short(page)
    assert "Synthetic data." not in page_of(write_board(str(tmp_path), search_of(2), synthetic=False))


def test_the_best_trial_is_told_first(tmp_path: Path) -> None:
    trials = search_of(20)
    best = max(trials, key=lambda trial: -1 if math.isnan(trial.score) else trial.score)
    page = page_of(write_board(str(tmp_path), trials))
    assert f"The best single model is trial {best.trial_id}: {best.config.detector}" in short(page)
    assert f"By detector the best are {best.config.detector} {best.score:.3f}, " in short(page)
    assert tables(page)["All trials, best first"][1][0] == best.trial_id


def test_with_the_dataset_there_are_intervals_classes_and_pictures(dataset: str, tmp_path: Path) -> None:
    run = str(tmp_path)
    page = page_of(write_board(run, with_detections(run, search_of(4), dataset)), data=dataset)
    added = ["Each class", "The best images", "The worst misses", "The most confident false boxes"]
    assert titles(page) == [*ALWAYS[:6], *added, *ALWAYS[6:]]
    assert re.search(r"map_40_findings [\d.]+ \(95 % interval [\d.]+ to [\d.]+\)", short(page))
    assert "--data" not in short(page)
    assert len(figures(page)) == 5


def test_a_dataset_without_kept_detections_adds_nothing(dataset: str, tmp_path: Path) -> None:
    page = page_of(write_board(str(tmp_path), search_of(4)), data=dataset)
    assert titles(page) == ALWAYS
    assert "No trial's detections are kept" in short(page)


def test_a_forecast_is_told(tmp_path: Path) -> None:
    run = write_board(str(tmp_path), search_of(4))
    write_record(run, Record(Forecast(4, 3, 3, 0.0, 9.0, 9.0, 60.0, 60.0, Devices("GPU", 3, 1)), {}))
    page = page_of(run)
    assert titles(page) == [*ALWAYS[:7], "Cost", ALWAYS[7]]
    assert "The search is not over" not in page


def test_a_search_that_still_runs_says_so(tmp_path: Path) -> None:
    page = page_of(write_trials(str(tmp_path), search_of(4)))
    assert "What the search has found so far (unfinished)</h1>" in page
    assert "This search is unfinished: it has no leaderboard yet." in short(page)
    assert re.search(r"The last report came at 2025-10-09 \d\d:\d\d UTC", short(page))
    assert titles(page) == ALWAYS


def test_a_search_without_trials_has_a_page(tmp_path: Path) -> None:
    page = page_of(write_trials(str(tmp_path), []))
    assert "No trial has a score" in short(page)
    assert "The search has no trial yet." in short(page)
    assert titles(page) == [*ALWAYS[:2], *ALWAYS[4:]]
    assert figures(page) == []
    assert tables(page)["All trials, best first"][1:] == []


def test_one_trial_has_a_page(tmp_path: Path) -> None:
    history = history_of(YOLOX, 0.3, start=STARTED, steps=8_000)
    page = page_of(write_board(str(tmp_path), [trial_of(YOLOX, 0.3, history=history)]))
    assert "1 trial: 1 finished." in short(page)
    assert "By detector" not in short(page)
    assert "nothing to compare" in page
    assert len(figures(page)) == 3


@pytest.mark.parametrize("status", ["failed", "finished"])
def test_trials_without_a_single_score_have_a_page(tmp_path: Path, status: str) -> None:
    """Failed ones, or such on a fold without findings."""
    trials = [trial_of(base, math.nan, status=status, reason=HTML) for base in BASES]
    page = page_of(write_board(str(tmp_path), trials))
    assert "No trial ended with a score" in short(page)
    assert [row[1] for row in tables(page)["All trials, best first"][1:]] == ["-"] * 3
    assert titles(page) == [title for title in ALWAYS if title != "Augmentation strength"]


def test_nothing_from_a_file_becomes_html(tmp_path: Path) -> None:
    config = dataclasses.replace(YOLOX, policy="E", weights="<script>alert(2)</script>")
    history = [item | {"host": "<i>host</i>"} for item in history_of(config, 0.3, start=STARTED, steps=8_000)]
    trials = [trial_of(config, 0.3, history=history, reason=HTML), *search_of(5)]
    page = page_of(write_board(str(tmp_path), trials))
    markup = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"<script>alert|<b>nan|<i>host", page)
    assert "alert(1)" in markup
    assert [HTML, "finished", "1"] in tables(page)["Why trials did not run to their end"]
    # A plotly label reads a little HTML.
    assert "<i>host" not in str(figures(page))
    assert "&lt;i&gt;host" in str(figures(page))


def test_the_page_of_many_trials_stays_small(tmp_path: Path) -> None:
    """Plotly itself is 4.8 MB of it."""
    trials = search_of(300)
    page = page_of(write_board(str(tmp_path), trials))
    assert len(page) < 7_000_000
    assert len(tables(page)["The best 100 of 300 trials, best first"]) == 101
    assert "300 trials: 219 finished, 54 stopped, 27 failed." in short(page)


def test_a_study_is_told_by_its_means_and_other_searches_by_their_trials(tmp_path: Path) -> None:
    trials = study_trials(lambda config: 0.1 * (config.policy == "E"), equal_epochs={"B": 4})
    other = BASES[1]
    trials += [trial_of(dataclasses.replace(other, policy="E"), 0.2), trial_of(other_rate(other), 0.3)]
    page = page_of(write_board(str(tmp_path), trials))
    added = ["Which augmentation is best", "Equal steps and equal epochs"]
    assert titles(page) == [ALWAYS[0], *added, *ALWAYS[1:]]
    assert "policy E at 0.5 has the best mean" in short(page)
    assert "faster_rcnn: which augmentation is best cannot be told: of its 2 finished trials no two" in short(page)
    assert "yolox: the arms, best mean first, with 95 % intervals" in tables(page)
    # The strength of each trial is drawn of the other family alone.
    curve, *_, strengths = [spec for spec in figures(page) if axis_title(spec) == "strength"]
    assert len(curve["data"]) == 4
    assert [len(trace["x"]) for trace in strengths["data"]] == [1, 1]


def other_rate(config: TrainConfig) -> TrainConfig:
    return dataclasses.replace(config, learning_rate=3e-4)


def axis_title(figure: dict) -> str:
    return figure["layout"]["xaxis"].get("title", {}).get("text", "")


def test_detections_of_a_study_are_counted_in_its_intervals(dataset: str, tmp_path: Path) -> None:
    run = str(tmp_path)
    trials = study_trials(arms=(("A", 1.0), ("E", 0.5)), blocks=[(seed, fold) for seed in (0, 1) for fold in (0, 1)])
    page = page_of(write_board(run, with_detections(run, trials, dataset)), data=dataset)
    assert "Intervals cover what training again and other images would give." in page
    assert "--data" not in page.split("Which augmentation is best</h2>")[1].split("<section")[0]
