import json
import re
from pathlib import Path

import pytest

from tests.reports.conftest import BIG, CARDIOMEGALY, write_dataset
from tests.reports.predictions import BIG_ONES, NOTHING, TEST_PART, found, kept, parquet, row_of, submission
from vbd import storage
from vbd.data.parts import parse_part
from vbd.data.prepared import open_dataset, read_truths
from vbd.errors import InputError
from vbd.evaluation.average_precision import evaluate
from vbd.reports.scores.score import score_predictions
from vbd.submission.examine import examine

GOOD_ROWS = ("t,3 0.9 40 20 200 100 1 0.5 0 0 20 20 14 0.1 0 0 1 1", "u,14 0.8 0 0 1 1")


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


def test_the_name_of_a_part_is_understood() -> None:
    assert [parse_part(text) for text in (None, "test", "train", "3")] == [None, "test", "train", 3]
    with pytest.raises(InputError, match="--part validation"):
        parse_part("validation")


# -------------------------------------------------------------------------------------------------- agreement, readers


def test_findings_are_scored_by_how_many_readers_drew_them(dataset: str, tmp_path: Path) -> None:
    """The nodule that one reader drew is missed; both cardiomegalies, of three and of two readers, are found."""
    text = score_predictions(parquet(tmp_path, BIG_ONES), dataset, part="train", replicates=0).text
    assert row_of(text, "any reader") == ["any reader", "0.5000", "3"]
    assert row_of(text, "2 or more readers") == ["2 or more readers", "1.0000", "2"]
    assert row_of(text, "3 readers") == ["3 readers", "1.0000", "1"]


def test_agreement_is_left_out_where_all_findings_are_alike(dataset: str, tmp_path: Path) -> None:
    text = score_predictions(parquet(tmp_path, TEST_PART), dataset, replicates=0).text
    assert "any reader" not in text
    assert "large size" in text


def test_the_readers_stand_beside_the_detector(dataset: str, tmp_path: Path) -> None:
    """Each look of R1, R2, R3 against the other two: 5 of 8 boxes are drawn, 1 of 6 is alone, on 12 looks."""
    text = score_predictions(parquet(tmp_path, BIG_ONES), dataset, part="train", replicates=0).text
    assert row_of(text, "all findings  ") == ["all findings", "8", "0.0833", "0.6250", "0.7500", "0.8"]
    assert row_of(text, "Nodule/Mass  ")[0] == "Nodule/Mass"
    assert "beside the readers" not in score_predictions(parquet(tmp_path, TEST_PART), dataset, replicates=0).text


def test_readers_that_the_dataset_was_prepared_without_are_not_compared_with(dataset: str, tmp_path: Path) -> None:
    """R1 and R2 alone: 4 of 5 boxes are drawn by the other one too, and the nodule of R1 is alone on 8 looks."""
    content = storage.read_object(f"{dataset}/dataset.json")
    for options in ({"readers": ["R1", "R2"]}, {"without_readers": ["R3"]}):
        storage.write_json(f"{dataset}/dataset.json", content | {"options": content["options"] | options})
        text = score_predictions(parquet(tmp_path, BIG_ONES), dataset, part="train", replicates=0).text
        assert row_of(text, "all findings  ") == ["all findings", "5", "0.1250", "0.8000", "0.8000", "0.8"]
    storage.write_json(f"{dataset}/dataset.json", content | {"options": content["options"] | {"readers": ["R1"]}})
    assert "beside the readers" not in score_predictions(parquet(tmp_path, BIG_ONES), dataset, replicates=0).text


def test_a_dataset_without_readers_is_scored_without_them(dataset: str, tmp_path: Path) -> None:
    Path(f"{dataset}/annotations/readers.parquet").unlink()
    scored = score_predictions(parquet(tmp_path, BIG_ONES), dataset, part="train", replicates=0)
    assert scored.scores is not None
    assert "beside the readers" not in scored.text


# ---------------------------------------------------------------------------------------------------------- comparison


def test_every_key_of_the_json_is_documented(dataset: str, tmp_path: Path) -> None:
    output = tmp_path / "scores.json"
    ours = parquet(tmp_path, BIG_ONES)
    score_predictions(ours, dataset, against=ours, replicates=2, output_json=str(output))
    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()
    described = set(re.findall(r"`(\w+)`", page[page.index("## The JSON") :]))
    content = json.loads(output.read_text())
    assert set(content) <= described
    assert set(content["human_reference"]) | set(content["confusion"]) <= described


@pytest.mark.parametrize(
    ("first", "second", "difference", "verdict"),
    [
        (BIG_ONES, NOTHING, "+0.5000", "better"),
        (NOTHING, BIG_ONES, "-0.5000", "worse"),
        (BIG_ONES, BIG_ONES, "+0.0000", "cannot tell"),
    ],
)
def test_a_difference_gets_a_verdict(first, second, difference, verdict, dataset: str, tmp_path: Path) -> None:
    ours, theirs = parquet(tmp_path, first), parquet(tmp_path, second, "other.parquet")
    output = str(tmp_path / "scores.json")
    text = score_predictions(ours, dataset, against=theirs, replicates=200, output_json=output).text
    table = text[text.index(f"minus {theirs}") :]
    cells = row_of(table, "map_40_findings")
    assert (cells[1], cells[-1]) == (difference, verdict)
    content = json.loads(Path(output).read_text())["against"]
    assert content["predictions"] == theirs
    assert content["difference"]["map_40_findings"]["verdict"] == verdict
    assert "ILD" not in content["difference"]  # nothing to be found


def test_without_replicates_a_difference_has_no_verdict(dataset: str, tmp_path: Path) -> None:
    ours, theirs = parquet(tmp_path, BIG_ONES), parquet(tmp_path, NOTHING, "other.parquet")
    text = score_predictions(ours, dataset, against=theirs, replicates=0).text
    assert row_of(text[text.index("minus ") :], "map_40_findings")[1:] == ["+0.5000", "-", "cannot tell"]


def test_others_must_hold_the_same_folds(dataset: str, tmp_path: Path) -> None:
    ours, theirs = parquet(tmp_path, BIG_ONES), parquet(tmp_path, BIG_ONES[:1], "other.parquet")
    with pytest.raises(InputError, match=r"other.parquet: holds no image of the fold 1, on which .* is scored"):
        score_predictions(ours, dataset, against=theirs, replicates=0)
    turned = score_predictions(theirs, dataset, against=ours, replicates=0)
    assert turned.scores is not None
    assert turned.scores.num_images == 2


def test_of_several_others_the_best_is_compared_with(dataset: str, tmp_path: Path) -> None:
    others = kept(tmp_path / "best", {"yolox-1": [NOTHING], "yolox-2": [BIG_ONES]})
    text = score_predictions(parquet(tmp_path, BIG_ONES), dataset, against=others, replicates=0).text
    assert f"minus {others}: yolox-2" in text


# --------------------------------------------------------------------------------------------------------------- flags


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"replicates": -1}, "--replicates -1: want 0"),
        ({"score_threshold": 1.5}, "--score-threshold 1.5: want 0 to 1"),
        ({"score_threshold": -0.1}, "--score-threshold -0.1: want 0 to 1"),
        ({"score_threshold": float("nan")}, "--score-threshold nan: want 0 to 1"),
        ({"part": 7}, "no fold 7"),
        ({"against": "nowhere.parquet"}, "nowhere.parquet: no such file"),
    ],
)
def test_a_wrong_flag_is_told(dataset: str, tmp_path: Path, flags: dict, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        score_predictions(parquet(tmp_path, BIG_ONES), dataset, **flags)
    assert "\n" not in str(error.value)


def test_boxes_count_in_the_confusion_from_the_threshold_on(dataset: str, tmp_path: Path) -> None:
    def matrix(threshold: float | None) -> dict:
        path = str(tmp_path / "scores.json")
        score_predictions(
            parquet(tmp_path, BIG_ONES), dataset, replicates=0, score_threshold=threshold, output_json=path
        )
        return json.loads(Path(path).read_text())["confusion"]

    assert matrix(0.85)["matrix"][CARDIOMEGALY][CARDIOMEGALY] == 1
    assert matrix(0.85)["matrix"][CARDIOMEGALY][-1] == 1
    assert matrix(None)["matrix"][CARDIOMEGALY][CARDIOMEGALY] == 2
    assert matrix(None)["score_threshold"] == pytest.approx(0.8)
    assert matrix(None)["chosen"] == "where there is at most 1 false box per image"


# ------------------------------------------------------------------------------------------------- the part, and silence


@pytest.mark.parametrize(
    ("rows", "where"),
    [
        (("a,3 0.9 40 20 200 100", "c,14 1 0 0 1 1"), "fold 0"),
        (("a,3 0.9 40 20 200 100", "b,14 1 0 0 1 1", "c,14 1 0 0 1 1", "d,14 1 0 0 1 1"), "folds 0, 1"),
        (("t,3 0.9 40 20 200 100", "u,14 1 0 0 1 1"), "test part"),
        (("x,14 1 0 0 1 1",), "test part"),  # of no image that is known
    ],
)
def test_a_submission_is_for_the_part_that_its_images_are_in(
    rows: tuple[str, ...], where: str, dataset: str, tmp_path: Path
) -> None:
    path = submission(tmp_path, *rows)
    scored, examined = score_predictions(path, dataset, replicates=0), examine(path, dataset)
    assert scored.text.splitlines()[0].startswith(f"{path} against the {where} of {dataset}")
    assert examined.where == where
    if "x," not in rows[0]:
        assert (scored.defects, {finding.kind for finding in examined.findings} - {"scores_equal"}) == ((), set())


def test_a_submission_of_both_parts_is_for_the_one_that_is_named(dataset: str, tmp_path: Path) -> None:
    path = submission(tmp_path, "a,14 1 0 0 1 1", "b,14 1 0 0 1 1", "t,3 0.9 40 20 200 100")
    for look in (score_predictions, examine):
        with pytest.raises(InputError) as caught:
            look(path, dataset)
        assert str(caught.value) == (
            f"{path}: holds 1 images of the test part and 2 of training folds; choose one of them with --part test or "
            "--part train"
        )
    assert examine(path, dataset, part="test").where == "test part"


def test_predictions_without_a_box_in_any_image_are_reported(dataset: str, tmp_path: Path) -> None:
    ours = parquet(tmp_path, NOTHING)
    text = score_predictions(ours, dataset, replicates=0).text
    assert text.splitlines()[1] == f"warning: {ours}: finds nothing in any image"
    assert "warning" not in score_predictions(parquet(tmp_path, BIG_ONES), dataset, replicates=0).text
    members = kept(tmp_path / "kept", {"good-1": [BIG_ONES], "silent-1": [NOTHING]})
    (line,) = [
        line for line in score_predictions(members, dataset, replicates=0).text.splitlines() if "warning" in line
    ]
    assert line == f"warning: {members}: silent-1: finds nothing in any image"
