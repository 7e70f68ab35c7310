"""The page of an ensemble, of made-up members."""

import dataclasses
import html
import re
from pathlib import Path

import numpy as np
import pytest

from tests.browser import check_figures, drawn_figures, open_page
from tests.ensemble.kept import FakePredict, good_members, write_dataset, write_kept
from tests.reports.reading import figures, loads, tables
from vbd.config import RunOptions
from vbd.ensemble import build
from vbd.ensemble.build import build_ensemble
from vbd.ensemble.fit import Plan
from vbd.ensemble.result import EnsembleResult
from vbd.records import Detections, Truth
from vbd.reports.ensemble.measure import cases_of, measure
from vbd.reports.ensemble.page import write_ensemble_page
from vbd.reports.page import Table
from vbd.reports.search.tables import ensemble

MEMBERS = good_members()
DETECTORS = {name: MEMBERS[name] for name in ("faster_rcnn-1", "yolox-1")}
CLASSIFIERS = {"classifier-1": MEMBERS["classifier-1"]}
HIT, AWAY = (0, 0, 100, 100), (300, 300, 400, 400)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("data"))


def built(run: Path, data: str, members: dict[str, list[Detections]]) -> EnsembleResult:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "predict", FakePredict(members))
        kept = write_kept(run, data, members)
        return build_ensemble(kept, data, options=RunOptions(), plan=Plan(replicates=30), say=lambda line: None)


@pytest.fixture(scope="module")
def good(data: str, tmp_path_factory: pytest.TempPathFactory) -> EnsembleResult:
    return built(tmp_path_factory.mktemp("good"), data, MEMBERS)


@pytest.fixture(scope="module")
def page(good: EnsembleResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_ensemble_page(good, str(path), replicates=30)
    return path


def page_of(result: EnsembleResult, tmp_path: Path) -> str:
    write_ensemble_page(result, str(tmp_path / "page.html"), replicates=10)
    return (tmp_path / "page.html").read_text()


def titles(text: str) -> list[str]:
    return [html.unescape(title) for title in re.findall(r"<h2[^>]*>(.*?)</h2>", text)]


def test_the_page_stands_alone_and_tells_its_data_are_synthetic(page: Path) -> None:
    text = page.read_text()
    assert loads(text) == []
    assert "Synthetic data." in text
    assert "not for clinical use" in text
    assert len(figures(text)) == 5
    assert titles(text) == [
        "In short",
        "The members",
        "What fusing gains",
        "Do scores keep their word?",
        "How unlike the detectors are",
        "Normal images",
        "Gates",
        "Each class",
        "The best images",
        "The worst images",
        "Normal images with the highest boxes",
        "How to read this page",
    ]


def test_the_report_of_the_search_reads_what_was_kept(good: EnsembleResult) -> None:
    (section,) = ensemble(str(Path(good.output).parent))
    members = next(block for block in section.blocks if isinstance(block, Table))
    assert [row[0] for row in members.rows] == ["yolox-1", "faster_rcnn-1", "ensemble"]
    assert members.rows[0][1] == good.fitted.recipe.weights["yolox-1"]
    assert members.rows[2][4] == good.test["ensemble"].map_40


def test_every_figure_is_drawn(page: Path, tmp_path: Path) -> None:
    opened = open_page(page, tmp_path / "profile")
    check_figures(opened)
    # Two detectors and the ensemble, diversity, normal images, three gates, classes.
    assert [drawn.subplots for drawn in drawn_figures(opened.dom)] == [3, 1, 1, 3, 1]


def test_the_tables_hold_what_was_measured(page: Path, good: EnsembleResult) -> None:
    found = tables(page.read_text())
    fitted = good.fitted
    members = {row[0]: row[1:] for row in found["Detectors by map_40_findings"][1:]}
    for name in DETECTORS:
        assert float(members[name][0]) == pytest.approx(fitted.recipe.weights[name], abs=1e-3)
        assert float(members[name][3]) == pytest.approx(good.test[name].map_40_findings, abs=1e-3)
    assert float(members["ensemble"][1]) == pytest.approx(good.out_of_fold.map_40_findings, abs=1e-3)
    sources = {row[0]: row for row in found["Sources on images that they were not fitted on"][1:]}
    assert float(sources["the boxes"][2]) == pytest.approx(fitted.sources["boxes"].auc, abs=1e-3)
    assert [row[0] for row in sources.values() if row[-1] == "yes"] in (["the classifiers"], ["both"])
    gates = found["What each gate is worth on halves that took no part"][1:]
    assert [row[-1] for row in gates].count("yes") == 1
    assert float(gates[1][1]) == pytest.approx(fitted.gates["damp"].score, abs=1e-3)
    pairs = found["Findings by who found them"][1:]
    assert pairs[0][1] == f"{good.diversity.pairs[0].both:.1%}"


def test_calibrated_scores_keep_their_word_better(good: EnsembleResult) -> None:
    measures = measure(good, replicates=10)
    for name in DETECTORS:
        assert measures.after[name].log_loss < measures.before[name].log_loss
    assert measures.no_finding.counts.sum() == len(good.truths)
    assert set(measures.intervals) == {*MEMBERS, "ensemble"}
    assert measures.intervals["ensemble"].map_40.estimate == pytest.approx(good.out_of_fold.map_40)


def test_detectors_alone(data: str, tmp_path: Path) -> None:
    text = page_of(built(tmp_path / "run", data, DETECTORS), tmp_path)
    assert "Classifiers by" not in text
    assert [row[0] for row in tables(text)["Sources on images that they were not fitted on"][1:]] == [
        "the boxes",
        "the one chosen without the image",
    ]


def test_one_detector_alone(data: str, tmp_path: Path) -> None:
    text = page_of(built(tmp_path / "run", data, {"yolox-1": DETECTORS["yolox-1"]}), tmp_path)
    assert not {"What fusing gains", "How unlike the detectors are"} & set(titles(text))


def test_classifiers_alone(data: str, tmp_path: Path) -> None:
    text = page_of(built(tmp_path / "run", data, CLASSIFIERS), tmp_path)
    assert "There is no detector" in text
    assert "Do scores keep their word?" not in titles(text)


def test_without_the_truth_of_the_test_part_there_is_no_column(tmp_path: Path) -> None:
    hidden = write_dataset(tmp_path / "hidden", has_test_truth=False)
    found = tables(page_of(built(tmp_path / "run", hidden, MEMBERS), tmp_path))
    assert found["Detectors by map_40_findings"][0] == ["member", "weight", "validation", "95 % interval"]


def test_the_best_and_the_worst_images() -> None:
    def seen(image_id: str, hit: float, false: float) -> Detections:
        boxes = np.array([HIT, AWAY], np.float32)
        return Detections(image_id, boxes, np.array([hit, false], np.float32), np.zeros(2, np.int64))

    ill = [Truth(name, np.array([HIT], np.float32), np.zeros(1, np.int64)) for name in ("good", "fair", "bad", "blind")]
    truths = [*ill, Truth("calm"), Truth("alarm"), Truth("silent")]
    found = [
        *(seen("good", 0.9, 0.1), seen("fair", 0.6, 0.2), seen("bad", 0.2, 0.8)),
        *(seen("calm", 0.0, 0.1), seen("alarm", 0.3, 0.7)),
    ]
    cases = cases_of(found, truths, limit=2)
    assert [case.truth.image_id for case in cases.best] == ["good", "fair"]
    assert [case.truth.image_id for case in cases.worst] == ["bad", "blind"]
    assert [case.truth.image_id for case in cases.alarms] == ["alarm", "calm"]
    assert (cases.best[0].hit_score, cases.best[0].false_score) == pytest.approx((0.9, 0.1))
    assert (cases.worst[1].hit_score, cases.worst[1].false_score) == (0, 0)


def test_an_image_that_cannot_be_read_is_told_in_its_place(good: EnsembleResult, tmp_path: Path) -> None:
    moved = dataclasses.replace(good.dataset, location=str(tmp_path / "nowhere"))
    text = page_of(dataclasses.replace(good, dataset=moved), tmp_path)
    assert text.count("The image could not be read") == 18
