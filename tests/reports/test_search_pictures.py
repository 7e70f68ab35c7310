import dataclasses
from pathlib import Path

import numpy as np

from tests.reports.conftest import BIG, CARDIOMEGALY, NODULE, SMALL
from tests.reports.predictions import found, parquet
from tests.reports.searches import BASES, trial_of
from vbd.boxes import as_boxes
from vbd.data.prepared import open_dataset
from vbd.evaluation.matching import match
from vbd.records import Detections, Trial, Truth
from vbd.reports.page import Picture
from vbd.reports.search.pictures import best_images, picture_sections, threshold_of

YOLOX = BASES[0]


def kept(folder: Path, *detections: Detections) -> Trial:
    return dataclasses.replace(trial_of(YOLOX, 0.5), detections=parquet(folder, detections))


def truth(name: str, *labels: int) -> Truth:
    return Truth(name, as_boxes([BIG] * len(labels)), np.array(labels, np.int64), np.ones(len(labels), np.int64))


def test_the_best_images_are_those_where_truth_and_boxes_agree() -> None:
    truths = [truth("missed", 3), truth("normal"), truth("noisy", 3), truth("one", 3), truth("two", 3, 4)]
    wrong = ((0, 0, 5, 5), 7, 0.9)
    detections = [
        found("noisy", (BIG, 3, 0.9), wrong),
        found("normal", wrong),
        found("one", (BIG, 3, 0.9), ((0, 0, 5, 5), 7, 0.1)),  # below the threshold
        found("two", (BIG, 3, 0.9), (BIG, 4, 0.9)),
    ]
    matches = match(detections, truths)
    assert best_images(truths, matches, score_threshold=0.5, limit=9) == ["two", "one", "noisy"]
    assert best_images(truths, matches, score_threshold=0.5, limit=1) == ["two"]
    assert best_images(truths, matches, score_threshold=0.95, limit=9) == []


def test_the_threshold_leaves_one_false_box_for_each_image() -> None:
    wrong = [((0, 0, 5, 5), 7, score) for score in (0.9, 0.8, 0.7)]
    detections = [found("a", (BIG, 3, 0.85), *wrong)]
    assert threshold_of(match(detections, [truth("a", 3), truth("b")])) == np.float32(0.8)
    assert threshold_of(match([], [truth("a", 3)])) == 0.5


def test_the_gallery_shows_what_was_found_missed_and_false(dataset: str, tmp_path: Path) -> None:
    wrong = ((0, 0, 30, 30), CARDIOMEGALY, 0.6)
    trial = kept(tmp_path, found("a", (BIG, CARDIOMEGALY, 0.9)), found("c", wrong))
    best, misses, false = picture_sections([trial_of(BASES[1], 0.9), trial], open_dataset(dataset))
    assert trial.trial_id in str(best.blocks[0])
    (picture,) = [block for block in best.blocks if isinstance(block, Picture)]
    assert picture.caption == "2 to find (Cardiomegaly, Nodule/Mass), 1 box drawn. a."
    assert "Nodule/Mass, drawn by 1 reader" in next(b.caption for b in misses.blocks if isinstance(b, Picture))
    assert "the image is normal. c." in next(b.caption for b in false.blocks if isinstance(b, Picture))


def test_without_a_finding_found_the_gallery_says_so(dataset: str, tmp_path: Path) -> None:
    best, _, _ = picture_sections([kept(tmp_path, found("a"))], open_dataset(dataset))
    assert best.blocks[1] == "On no image was a finding found."


def test_an_image_that_is_gone_takes_its_picture_along(dataset: str, tmp_path: Path) -> None:
    (Path(dataset) / "images/a.png").unlink()
    trial = kept(tmp_path, found("a", (BIG, CARDIOMEGALY, 0.9), (SMALL, NODULE, 0.9)))
    best, _, _ = picture_sections([trial], open_dataset(dataset))
    assert [block for block in best.blocks if isinstance(block, Picture)] == []


def test_without_kept_detections_there_is_no_gallery(dataset: str) -> None:
    assert picture_sections([trial_of(YOLOX, 0.5)], open_dataset(dataset)) == []
    assert picture_sections([], open_dataset(dataset)) == []
