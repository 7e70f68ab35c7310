import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from tests.reports.conftest import ATELECTASIS, BIG, CARDIOMEGALY, SMALL
from tests.reports.predictions import found, parquet
from tests.reports.searches import BASES, trial_of
from vbd.config import TrainConfig
from vbd.data.prepared import PreparedDataset, open_dataset
from vbd.labels import name_of
from vbd.records import Trial
from vbd.reports.page import Plot
from vbd.reports.search.measure import best_first, class_map, measure_trials

YOLOX, RCNN, DET = BASES
HEART, NODULE = name_of(CARDIOMEGALY), name_of(8)


@pytest.fixture
def opened(dataset: str) -> PreparedDataset:
    return open_dataset(dataset)


def kept(folder: Path, config: TrainConfig, score: float, *boxes: tuple, image: str = "a") -> Trial:
    """A trial that found these boxes in one image of its fold."""
    trial = trial_of(config, score)
    return dataclasses.replace(trial, detections=parquet(folder / trial.trial_id, [found(image, *boxes)]))


def test_detections_give_an_interval_and_the_score_of_each_class(opened: PreparedDataset, tmp_path: Path) -> None:
    trial = kept(tmp_path, YOLOX, 0.5, (BIG, CARDIOMEGALY, 0.9))
    (item,) = measure_trials([trial], opened).values()
    assert item.trial is trial
    low, high = item.interval
    assert 0 <= low <= 0.5 <= high <= 1
    assert (item.per_class[HEART], item.per_class[NODULE]) == (1, 0)
    assert math.isnan(item.per_class[name_of(ATELECTASIS)])
    assert (item.num_truths[HEART], item.num_truths[NODULE], item.num_truths[name_of(ATELECTASIS)]) == (1, 1, 0)


def test_each_trial_is_held_against_its_own_fold(opened: PreparedDataset, tmp_path: Path) -> None:
    """Image b, with a heart and no nodule, is in fold 1."""
    trial = kept(tmp_path, dataclasses.replace(YOLOX, fold=1), 1.0, (BIG, CARDIOMEGALY, 0.9), image="b")
    (item,) = measure_trials([trial], opened).values()
    assert item.per_class[HEART] == 1
    assert item.num_truths[NODULE] == 0


def test_the_best_of_each_family_are_measured_before_the_others(opened: PreparedDataset, tmp_path: Path) -> None:
    configs = [dataclasses.replace(YOLOX, seed=seed) for seed in range(5)]
    trials = [kept(tmp_path, config, 0.9 - i / 10, (BIG, CARDIOMEGALY, 0.9)) for i, config in enumerate(configs)]
    trials.append(kept(tmp_path, RCNN, 0.1, (SMALL, 8, 0.9)))
    assert [trial.config.detector for trial in best_first(trials)][:3] == ["yolox", "faster_rcnn", "yolox"]
    # Four are read at a time.
    few = measure_trials(trials, opened, max_boxes=1)
    assert list(few) == [trials[i].trial_id for i in (0, 5, 1, 2)]
    assert len(measure_trials(trials, opened)) == 6


def test_trials_without_a_score_or_detections_are_left_out(opened: PreparedDataset, tmp_path: Path) -> None:
    gone = dataclasses.replace(trial_of(YOLOX, 0.4), detections=str(tmp_path / "gone.parquet"))
    failed = kept(tmp_path, RCNN, math.nan, (BIG, CARDIOMEGALY, 0.9))
    assert measure_trials([gone, failed, trial_of(DET, 0.1)], opened) == {}


def test_the_map_leaves_a_class_without_truth_blank(opened: PreparedDataset, tmp_path: Path) -> None:
    trials = [kept(tmp_path, YOLOX, 0.5, (BIG, CARDIOMEGALY, 0.9)), kept(tmp_path, RCNN, 0.5, (SMALL, 8, 0.9))]
    (section,) = class_map(measure_trials(trials, opened), num_scored=2)
    (plot,) = section.blocks
    assert isinstance(plot, Plot)
    heat = plot.figure.data[0]
    values = np.array(heat.z, float)
    assert values.shape == (2, 14)
    assert list(heat.x)[:2] == [f"{HEART} (1)", f"{NODULE} (1)"]
    np.testing.assert_array_equal(values[:, :2], [[1, 0], [0, 1]])
    assert np.isnan(values[:, 2:]).all()
    assert list(heat.y) == [f"{trials[0].trial_id} yolox s A", f"{trials[1].trial_id} faster_rcnn resnet50 A"]
    assert "of the scored trials" in plot.caption


def test_folds_with_unequal_counts_are_told(opened: PreparedDataset, tmp_path: Path) -> None:
    trials = [
        kept(tmp_path, YOLOX, 0.5, (BIG, CARDIOMEGALY, 0.9)),
        kept(tmp_path, dataclasses.replace(YOLOX, fold=1), 0.5, (BIG, CARDIOMEGALY, 0.9), image="b"),
    ]
    (section,) = class_map(measure_trials(trials, opened), num_scored=3)
    (plot,) = section.blocks
    assert isinstance(plot, Plot)
    assert list(plot.figure.data[0].x)[:2] == [f"{HEART} (1)", f"{NODULE} (0–1)"]
    assert "the best 2 of 3 scored trials" in plot.caption
    assert math.isnan(plot.figure.data[0].z[1][1])


def test_nothing_measured_makes_no_section() -> None:
    assert class_map({}, num_scored=3) == []
