import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.reports.conftest import ATELECTASIS, BIG, CARDIOMEGALY, NODULE, SMALL, write_dataset
from vbd import storage
from vbd.boxes import as_boxes
from vbd.data.prepared import open_dataset, read_truths
from vbd.errors import InputError
from vbd.evaluation.average_precision import evaluate
from vbd.records import Detections, detections_to_table
from vbd.reports.scores import parse_part, score_predictions

ROOT = Path(__file__).parents[2]
GOOD_ROWS = ("t,3 0.9 40 20 200 100 1 0.5 0 0 20 20 14 0.1 0 0 1 1", "u,14 0.8 0 0 1 1")


def found(image_id: str, *boxes: tuple[tuple[float, ...], int, float], no_finding: float | None = None) -> Detections:
    return Detections(
        image_id,
        as_boxes([box for box, _, _ in boxes]),
        np.array([score for _, _, score in boxes], np.float32),
        np.array([label for _, label, _ in boxes], np.int64),
        no_finding=no_finding,
    )


TEST_PART = [
    found("t", (BIG, CARDIOMEGALY, 0.9), ((0, 0, 20, 20), ATELECTASIS, 0.5), no_finding=0.1),
    found("u", (SMALL, CARDIOMEGALY, 0.2), no_finding=0.8),
]


def parquet(folder: Path, detections: list[Detections]) -> str:
    storage.write_table(str(folder / "detections.parquet"), detections_to_table(detections))
    return str(folder / "detections.parquet")


def submission(folder: Path, *rows: str) -> str:
    (folder / "submission.csv").write_text("\n".join(["image_id,PredictionString", *rows]) + "\n")
    return str(folder / "submission.csv")


def row_of(text: str, name: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(name))
    return re.split(r"\s{2,}", line.strip())


def test_the_table_holds_what_evaluate_says(dataset: str, tmp_path: Path) -> None:
    scored = score_predictions(parquet(tmp_path, TEST_PART), dataset, replicates=50)
    wanted = evaluate(TEST_PART, read_truths(open_dataset(dataset), "test"))
    assert repr(scored.scores) == repr(wanted)  # NaN is not equal to itself
    assert row_of(scored.text, "map_40_findings")[1].split()[0] == f"{wanted.map_40_findings:.4f}"
    for name in ("Cardiomegaly", "Atelectasis", "No finding"):
        cells = row_of(scored.text, name)
        assert cells[1] == f"{wanted.per_class[name]:.4f}"
        assert cells[-2:] == [str(wanted.num_truths[name]), str(wanted.num_detections[name])]
    assert row_of(scored.text, "ILD")[1] == "-"
    assert "test part" in scored.text.splitlines()[0]
    assert "synthetic data" in scored.text.splitlines()[0]
    assert scored.defects == ()


def test_real_data_is_not_called_synthetic(tmp_path: Path) -> None:
    real = write_dataset(str(tmp_path / "real"), synthetic=False)
    assert "synthetic" not in score_predictions(parquet(tmp_path, TEST_PART), real, replicates=0).text


def test_intervals_are_the_same_every_time_and_can_be_left_out(dataset: str, tmp_path: Path) -> None:
    path = parquet(tmp_path, TEST_PART)
    first, second = (score_predictions(path, dataset, replicates=30).text for _ in range(2))
    assert first == second
    assert "95 % interval" in first
    assert "95 % interval" not in score_predictions(path, dataset, replicates=0).text


def test_the_folds_that_hold_the_images_are_scored(dataset: str, tmp_path: Path) -> None:
    one = score_predictions(parquet(tmp_path, [found("a", (BIG, CARDIOMEGALY, 0.9))]), dataset, replicates=0)
    assert "the fold 0 of" in one.text
    assert one.scores is not None
    assert one.scores.num_images == 2  # the normal image of the fold counts too
    assert one.scores.per_class["Nodule/Mass"] == 0
    both = parquet(tmp_path, [found("a", (BIG, CARDIOMEGALY, 0.9)), found("b", (BIG, CARDIOMEGALY, 0.8))])
    union = score_predictions(both, dataset, replicates=0)
    assert "the folds 0, 1 of" in union.text
    assert union.scores is not None
    assert union.scores.num_images == 4
    part = score_predictions(both, dataset, part=1, replicates=0)
    assert part.scores is not None
    assert part.scores.num_images == 2
    assert "1 more outside this part left out" in part.text


def test_the_folder_of_a_prediction_job_is_read(dataset: str, tmp_path: Path) -> None:
    parquet(tmp_path / "out", TEST_PART)
    assert score_predictions(str(tmp_path / "out"), dataset, replicates=0).scores is not None


def test_a_good_submission_is_scored_and_has_no_defects(dataset: str, tmp_path: Path) -> None:
    scored = score_predictions(submission(tmp_path, *GOOD_ROWS), dataset, replicates=0)
    assert scored.defects == ()
    assert "check: no defects" in scored.text
    assert scored.scores is not None
    assert scored.scores.per_class["Cardiomegaly"] == 1
    assert scored.scores.per_class["No finding"] == 1


def test_defects_of_a_submission_are_listed_and_what_can_be_is_scored(dataset: str, tmp_path: Path) -> None:
    outside = "t,3 0.9 40 20 2000 100 14 0.1 0 0 1 1"
    scored = score_predictions(submission(tmp_path, outside), dataset, replicates=0)
    assert scored.scores is not None
    assert any("line 2, image t" in line and "leaves the image" in line for line in scored.defects)
    assert any("image u: the image has no row" in line for line in scored.defects)
    assert f"check: {len(scored.defects)} defect(s)" in scored.text


def test_an_unreadable_submission_is_not_scored_but_told(dataset: str, tmp_path: Path) -> None:
    scored = score_predictions(submission(tmp_path, "t,3 0.9 40", GOOD_ROWS[1]), dataset, replicates=0)
    assert scored.scores is None
    assert any("not a multiple of six" in line for line in scored.defects)
    assert "not scored" in scored.text


def test_a_submission_is_checked_where_the_truth_is_not_known(dataset: str, tmp_path: Path) -> None:
    Path(f"{dataset}/annotations/instances_test.json").unlink()
    scored = score_predictions(submission(tmp_path, *GOOD_ROWS), dataset, replicates=0)
    assert (scored.scores, scored.defects) == (None, ())
    assert "the truth of the test part is not known" in scored.text


@pytest.mark.parametrize("by_name", [True, False])
def test_coco_results_are_in_pixels_of_the_prepared_image(dataset: str, tmp_path: Path, by_name: bool) -> None:
    # BIG is 40 20 200 100 in 256 x 128; the prepared image has 64 x 64.
    entry = {"image_id": "a" if by_name else 1, "category_id": CARDIOMEGALY + 1, "bbox": [10, 10, 40, 40], "score": 0.9}
    path = str(tmp_path / "results.json")
    storage.write_json(path, [entry])
    scored = score_predictions(path, dataset, part=None if by_name else 0, replicates=0)
    assert scored.scores is not None
    assert scored.scores.per_class["Cardiomegaly"] == 1
    assert scored.scores.num_images == 2


def test_the_scores_are_written_as_json(dataset: str, tmp_path: Path) -> None:
    path = str(tmp_path / "scores.json")
    scored = score_predictions(parquet(tmp_path, TEST_PART), dataset, replicates=20, output_json=path)
    content = json.loads(Path(path).read_text())
    assert scored.scores is not None
    assert content["scores"]["map_40"] == scored.scores.map_40
    assert content["scores"]["per_class"]["ILD"] is None
    assert content["synthetic"] is True
    assert len(content["intervals"]["map_40"]) == 2
    assert content["froc"]["num_truths"] == 2


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda folder: str(folder / "none.parquet"), "no such file"),
        (lambda folder: str(folder / "none.csv"), "no such file"),
        (lambda folder: parquet(folder, [found("zzz")]), "image 'zzz' is not in"),
        (lambda folder: parquet(folder, []), "holds no image"),
        (lambda folder: parquet(folder, [found("a"), found("t")]), "choose one with --part"),
    ],
)
def test_a_mistake_is_told_in_one_line(dataset: str, tmp_path: Path, write, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        score_predictions(write(tmp_path), dataset, replicates=0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "want a list of COCO results"),
        ([{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1}], "--part"),
        ([{"image_id": "a", "category_id": 99, "bbox": [0, 0, 1, 1], "score": 1}], "category_id is 99"),
        ([{"image_id": "a", "category_id": 1, "bbox": [0, 0, 1], "score": 1}], "bbox is"),
        ([{"image_id": "a", "category_id": 1, "bbox": [0, 0, 1, 1]}], "score is None"),
        ([{"image_id": "q", "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1}], "image 'q' is not in"),
        ([{"category_id": 1}], "entry 0"),
        ([7], "entry 0"),
    ],
)
def test_bad_coco_results_are_told(dataset: str, tmp_path: Path, content: object, message: str) -> None:
    path = str(tmp_path / "results.json")
    storage.write_json(path, content)
    with pytest.raises(InputError, match=message):
        score_predictions(path, dataset, replicates=0)


def test_a_part_outside_the_predictions_is_told(dataset: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none of its images is in the fold 1"):
        score_predictions(parquet(tmp_path, [found("a", (SMALL, NODULE, 0.5))]), dataset, part=1)


def test_the_name_of_a_part_is_understood() -> None:
    assert [parse_part(text) for text in (None, "test", "train", "3")] == [None, "test", "train", 3]
    with pytest.raises(InputError, match="--part validation"):
        parse_part("validation")


def test_the_job_exits_with_1_for_defects(dataset: str, tmp_path: Path) -> None:
    def run(predictions: str) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            "jobs/evaluate.py",
            "--predictions",
            predictions,
            "--data",
            dataset,
            "--replicates",
            "0",
        ]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    good = run(submission(tmp_path, *GOOD_ROWS))
    assert good.returncode == 0, good.stderr
    assert run(submission(tmp_path, GOOD_ROWS[0])).returncode == 1
    missing = run(str(tmp_path / "none.csv"))
    assert (missing.returncode, missing.stderr.count("\n")) == (2, 1)
