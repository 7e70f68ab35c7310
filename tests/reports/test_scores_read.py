"""What can be scored, how it is read, and how it is refused."""

import json
from pathlib import Path

import pyarrow as pa
import pytest

from tests.reports.conftest import BIG, CARDIOMEGALY, NODULE, SMALL
from tests.reports.predictions import BIG_ONES, NOTHING, TEST_PART, found, kept, parquet, row_of, submission
from vbd import storage
from vbd.errors import InputError
from vbd.records import detections_to_table
from vbd.reports.scores.score import score_predictions
from vbd.training.members import OUT_OF_FOLD


def test_the_folder_of_a_prediction_job_is_read(dataset: str, tmp_path: Path) -> None:
    parquet(tmp_path / "out", TEST_PART)
    assert score_predictions(str(tmp_path / "out"), dataset, replicates=0).scores is not None


def test_a_checkpoint_is_scored_by_what_it_found_out_of_fold(dataset: str, tmp_path: Path) -> None:
    parquet(tmp_path / "best" / "yolox-1", BIG_ONES[:1], OUT_OF_FOLD)
    scored = score_predictions(str(tmp_path / "best" / "yolox-1"), dataset, replicates=0)
    assert "the fold 0 of" in scored.text
    assert scored.scores is not None
    assert scored.scores.per_class["Cardiomegaly"] == 1


@pytest.mark.parametrize("inside", [True, False])
def test_each_member_is_scored_and_the_best_one_closely(dataset: str, tmp_path: Path, inside: bool) -> None:
    """`best/` itself, or the run's folder that it lies in."""
    best = kept(tmp_path / "best", {"yolox-1": [NOTHING], "retinanet-1": [[BIG_ONES[0], found("c")], BIG_ONES[1:2]]})
    output = str(tmp_path / "scores.json")
    scored = score_predictions(best if inside else str(tmp_path), dataset, replicates=20, output_json=output)
    assert row_of(scored.text, "yolox-1  ")[:2] == ["yolox-1", "0.0000"]
    assert row_of(scored.text, "retinanet-1  ")[:2] == ["retinanet-1", "0.5000"]
    assert row_of(scored.text, "retinanet-1  ")[-2:] == ["3", "folds 0, 1"]
    assert f"{best}: retinanet-1, the best of them" in scored.text
    assert scored.scores is not None
    assert scored.scores.map_40_findings == 0.5
    members = json.loads(Path(output).read_text())["members"]
    assert [member["name"] for member in members] == ["yolox-1", "retinanet-1"]
    assert members[1]["files"] == [f"{best}/retinanet-1-fold{k}/{OUT_OF_FOLD}" for k in (0, 1)]
    assert members[1]["scores"]["map_40_findings"] == 0.5


def test_members_of_another_dataset_are_refused(dataset: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="trained on dataset beef"):
        score_predictions(kept(tmp_path / "best", {"yolox-1": [NOTHING]}, dataset="beef"), dataset, replicates=0)


def test_a_member_without_its_detections_is_told(dataset: str, tmp_path: Path) -> None:
    best = kept(tmp_path / "best", {"yolox-1": [NOTHING]})
    Path(best, "yolox-1-fold0", OUT_OF_FOLD).unlink()
    with pytest.raises(InputError, match=f"yolox-1-fold0/{OUT_OF_FOLD}: no such file"):
        score_predictions(best, dataset, replicates=0)


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


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda folder: str(folder / "none.parquet"), "no such file"),
        (lambda folder: str(folder / "none.csv"), "no such file"),
        (lambda folder: parquet(folder, [found("zzz")]), "image 'zzz' is not in"),
        (lambda folder: parquet(folder, []), "holds no image"),
        (lambda folder: parquet(folder, [found("a"), found("a")]), "image 'a' comes twice"),
        (
            lambda folder: parquet(folder, [found("a", (BIG, 14, 0.9))]),
            "image 'a' has the label 14; labels are 0 to 13",
        ),
        (lambda folder: parquet(folder, [found("a", (BIG, -1, 0.9))]), "image 'a' has the label -1"),
        (lambda folder: parquet(folder, [found("a", (BIG, 3, float("nan")))]), "row 0: image 'a' has the score nan"),
        (lambda folder: parquet(folder, [found("a"), found("b", (BIG, 3, 5.0))]), "row 1: image 'b' has the score 5.0"),
        (
            lambda folder: parquet(folder, [found("a", ((9.0, 1.0, 3.0, 4.0), 3, 0.5))]),
            r"row 0: image 'a' has the box \[9.0, 1.0, 3.0, 4.0\]; want x_min, y_min, x_max, y_max",
        ),
        (
            lambda folder: parquet(folder, [found("a", ((0.0, 0.0, 3e6, 4.0), 3, 0.5))]),
            r"row 0: image 'a' has the box .*; corners are pixels, at most 1,000,000",
        ),
        (lambda folder: str(folder / "nowhere"), "no such file or folder, or an empty one; want detections.parquet"),
        (lambda folder: str(Path(submission(folder)).parent), "holds no predictions; want detections.parquet"),
        (
            lambda folder: parquet(folder, [found("a"), found("t")]),
            "1 images of the test part and 1 of training folds; choose one of them with --part",
        ),
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
        (
            [{"image_id": "a", "category_id": 1, "bbox": [0, 0, -1, 1], "score": 1}],
            "entry 0: bbox is .*sides from 0 on",
        ),
        ([{"image_id": "a", "category_id": 1, "bbox": [0, 0, 1e30, 1], "score": 1}], "entry 0: bbox is "),
        ([{"image_id": "a", "category_id": 1, "bbox": [0, 0, True, 1], "score": 1}], "entry 0: bbox is "),
        ([{"image_id": "a", "category_id": True, "bbox": [0, 0, 1, 1], "score": 1}], "entry 0: category_id is True"),
        ([{"image_id": "a", "category_id": 1, "bbox": [0, 0, 1, 1], "score": 5}], "entry 0: score is 5; want a number"),
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.drop_columns(["labels"]), "no column 'labels'; want image_id, boxes"),
        (lambda table: _with(table, "scores", pa.array(["high"])), "column 'scores' holds string"),
        (lambda table: _with(table, "boxes", pa.array([[[1.0, 2.0, 3.0]]])), "column 'boxes' holds list"),
        (lambda table: _with(table, "labels", pa.array([None], pa.list_(pa.int64()))), "'labels' has an empty cell"),
        (lambda table: _with(table, "image_id", pa.array([None], pa.string())), "'image_id' has an empty cell"),
        (
            lambda table: _with(table, "scores", pa.array([[0.5, 0.4]])),
            r"detections of a: shapes .* as jobs/predict.py",
        ),
    ],
)
def test_a_table_of_another_kind_is_told(dataset: str, tmp_path: Path, change, message: str) -> None:
    table = detections_to_table([found("a", (BIG, CARDIOMEGALY, 0.5))])
    storage.write_table(str(tmp_path / "x.parquet"), change(table))
    with pytest.raises(InputError, match=message) as error:
        score_predictions(str(tmp_path / "x.parquet"), dataset, replicates=0)
    assert "x.parquet" in str(error.value)
    assert "\n" not in str(error.value)


def _with(table: pa.Table, name: str, column: pa.Array) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, column)


@pytest.mark.parametrize("content", [b"", b"image_id,boxes\n", b"PAR1 but no more"])
def test_a_parquet_that_is_none_is_told(dataset: str, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.parquet").write_bytes(content)
    with pytest.raises(InputError, match=r"x.parquet: not a readable Parquet file"):
        score_predictions(str(tmp_path / "x.parquet"), dataset, replicates=0)


@pytest.mark.parametrize(("content", "message"), [("", "not valid JSON"), ("[]", "holds no image"), ("{", "not valid")])
def test_a_json_that_holds_nothing_is_told(dataset: str, tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(InputError, match=message):
        score_predictions(str(tmp_path / "results.json"), dataset, replicates=0)


def test_narrower_types_are_read_all_the_same(dataset: str, tmp_path: Path) -> None:
    """As other programs write them: 64-bit boxes, 32-bit labels, lists without a fixed length."""
    table = detections_to_table(TEST_PART)
    wanted = {"boxes": pa.list_(pa.list_(pa.float64())), "labels": pa.list_(pa.int32()), "no_finding": pa.float32()}
    for name, kind in wanted.items():
        table = _with(table, name, pa.array(table[name].to_pylist(), kind))
    storage.write_table(str(tmp_path / "x.parquet"), table)
    scored = score_predictions(str(tmp_path / "x.parquet"), dataset, replicates=0)
    plain = score_predictions(parquet(tmp_path, TEST_PART), dataset, replicates=0)
    assert repr(scored.scores) == repr(plain.scores)  # NaN is not equal to itself
