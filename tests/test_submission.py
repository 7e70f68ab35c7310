"""The submission file."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vbd.errors import InputError
from vbd.records import Detections
from vbd.submission import check_submission, read_submission, shortest, write_submission

HEADER = "image_id,PredictionString\n"


def found(image_id, boxes=(), scores=(), labels=None, no_finding=None):
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    labels = np.zeros(len(boxes), np.int64) if labels is None else np.asarray(labels, np.int64)
    return Detections(image_id, boxes, np.asarray(scores, np.float32), labels, no_finding)


def written(tmp_path, detections, image_ids, **options):
    path = tmp_path / "submission.csv"
    write_submission(detections, str(path), image_ids=image_ids, **options)
    return path.read_text().splitlines()


def problems(tmp_path, text, image_ids=("a",), original_hw=None):
    path = tmp_path / "submission.csv"
    path.write_text(text)
    return check_submission(str(path), image_ids=list(image_ids), original_hw=original_hw)


def test_no_images(tmp_path):
    assert written(tmp_path, [], []) == ["image_id,PredictionString"]


def test_an_image_without_detections_is_normal(tmp_path):
    assert written(tmp_path, [found("b")], ["b", "a"])[1:] == ["b,14 1 0 0 1 1", "a,14 1 0 0 1 1"]


def test_probability_of_normal_stands_beside_the_boxes(tmp_path):
    image = found("a", [[1, 2, 30.5, 40]], [0.25], [3], no_finding=0.1)
    assert written(tmp_path, [image], ["a"])[1] == "a,3 0.25 1 2 30.5 40 14 0.1 0 0 1 1"
    assert written(tmp_path, [found("a", no_finding=0.0)], ["a"])[1] == "a,14 1e-06 0 0 1 1"


def test_boxes_without_a_probability_stand_alone(tmp_path):
    assert written(tmp_path, [found("a", [[1, 2, 3, 4]], [1])], ["a"])[1] == "a,0 1 1 2 3 4"


def test_rows_follow_the_given_order(tmp_path):
    lines = written(tmp_path, [found("b"), found("a"), found("c")], ["c", "a", "b"])
    assert [line.split(",")[0] for line in lines[1:]] == ["c", "a", "b"]


def test_boxes_are_cut_at_the_border_and_empty_ones_left_out(tmp_path):
    image = found("a", [[-5, 10, 300, 90], [200, 0, 250, 10], [1, 1, 9, 9]], [0.9, 0.8, 0.0])
    assert written(tmp_path, [image], ["a"], original_hw={"a": (80, 200)})[1] == "a,0 0.9 0 10 200 80"


def test_only_the_best_boxes_are_kept(tmp_path):
    image = found("a", [[0, 0, i, i] for i in (1, 2, 3)], [0.1, 0.9, 0.5])
    assert written(tmp_path, [image], ["a"], max_boxes=2)[1] == "a,0 0.9 0 0 2 2 0 0.5 0 0 3 3"


@settings(max_examples=100, deadline=None)
@given(st.floats(0, 1, width=32, exclude_min=True))
def test_numbers_read_back_exactly(value):
    assert np.float32(float(shortest(np.float32(value)))) == np.float32(value)


def test_what_is_written_reads_back_equal(tmp_path):
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 2000, (50, 2))
    boxes = np.hstack([corner, corner + rng.uniform(1, 900, (50, 2))])
    scores = np.sort(rng.uniform(1e-5, 1, 50))[::-1]
    image = found("a", boxes, scores, rng.integers(0, 14, 50), no_finding=float(np.float32(0.3)))
    written(tmp_path, [image], ["a", "b"])
    first, second = read_submission(str(tmp_path / "submission.csv"))
    assert np.array_equal(first.boxes, image.boxes)
    assert np.array_equal(first.scores, image.scores)
    assert np.array_equal(first.labels, image.labels)
    assert first.no_finding == image.no_finding
    assert second.no_finding == 1


@pytest.mark.parametrize(
    ("detections", "image_ids", "message"),
    [
        ([found("x")], ["a"], "'x'"),
        ([found("a"), found("a")], ["a"], "twice"),
        ([found("a")], ["a", "a"], "twice"),
        ([found("a", [[0, 0, 1, 1]], [1.5])], ["a"], "score 1.5"),
        ([found("a", no_finding=2.0)], ["a"], r"P\(normal\)"),
    ],
)
def test_what_cannot_be_submitted_leaves_no_file(tmp_path, detections, image_ids, message):
    with pytest.raises(InputError, match=message):
        written(tmp_path, detections, image_ids)
    assert not list(tmp_path.iterdir())


def test_a_good_file_has_no_defects(tmp_path):
    text = HEADER + "a,3 0.5 1 2 30 40 14 0.1 0 0 1 1\nb,14 1 0 0 1 1\n"
    assert problems(tmp_path, text, ("a", "b"), {"a": (40, 30), "b": (9, 9)}) == []


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("a,", "empty"),
        ("a", "no comma"),
        ("a,14 1 0 0 1", "multiple of six"),
        ("a,14 1 0 0 one 1", "'one' (value 5) is not a number"),
        ("a,14 nan 0 0 1 1", "'nan' (value 2) is not a number"),
        ("a,15 1 0 0 10 10 14 1 0 0 1 1", "prediction 1: the class"),
        ("a,1.5 1 0 0 10 10 14 1 0 0 1 1", "prediction 1: the class"),
        ("a,14 0 0 0 1 1", "score is not in (0, 1]"),
        ("a,14 1.1 0 0 1 1", "score is not in (0, 1]"),
        ("a,14 1 0 0 1 1 3 0.5 5 5 101 9", "prediction 2: the box leaves the image of 100 x 50"),
        ("a,14 1 0 0 1 1 3 0.5 -1 5 10 9", "leaves"),
        ("a,14 1 0 0 1 1 3 0.5 10 5 10 9", "x_min >= x_max"),
        ("a,14 1 0 0 1 1 3 0.5 0 0 1 1 3 0.4 5 5 6 6", "prediction 2 and 1 more: the box is one pixel"),
        ("a,14 1 0 0 100 50", "class 14 is not 0 0 1 1"),
        ("a,14 1 0 0 1 1 14 0.5 0 0 1 1", "more than once"),
    ],
)
def test_a_row_with_one_defect(tmp_path, row, problem):
    # A second, good row predicts class 14.
    defects = problems(tmp_path, f"{HEADER}{row}\nb,14 1 0 0 1 1\n", ("a", "b"), {"a": (50, 100)})
    (defect,) = defects
    assert (defect.line, defect.image_id) == (2, "a")
    assert problem in defect.problem
    assert defect.mend


@pytest.mark.parametrize(
    ("text", "line", "image_id", "problem"),
    [
        ("", 1, "", "empty"),
        ("ID,TARGET\na,14 1 0 0 1 1\n", 1, "", "ID,TARGET"),
        (HEADER + "a,14 1 0 0 1 1\nx,14 1 0 0 1 1\n", 3, "x", "not an image"),
        (HEADER + "a,14 1 0 0 1 1\na,14 1 0 0 1 1\n", 3, "a", "line 2"),
        (HEADER + "a,3 0.5 1 2 30 40\n", 0, "", "class 14"),
    ],
)
def test_a_file_with_one_defect(tmp_path, text, line, image_id, problem):
    defects = problems(tmp_path, text)
    assert any(d.line == line and d.image_id == image_id and problem in d.problem for d in defects)
    assert len(defects) == (2 if not text else 1)  # an empty file lacks its image as well


def test_a_missing_image_is_named(tmp_path):
    (defect,) = problems(tmp_path, HEADER + "a,14 1 0 0 1 1\n", ("a", "b"))
    assert (defect.line, defect.image_id) == (0, "b")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "submission.csv:1"),
        (b"ID,TARGET\na,14 1 0 0 1 1\n", "submission.csv:1"),
        (HEADER.encode() + b"a,14 1 0 0 1 1\nb,3 1 2\n", "submission.csv:3"),
        (HEADER.encode() + b"a,14 1 0 0 1 1\na,14 1 0 0 1 1\n", "submission.csv:3"),
        (HEADER.encode() + b"a,77 1 0 0 1 1\n", "submission.csv:2.*class"),
        (b"\xff\xfe\x00\x01", "not a text file"),
    ],
)
def test_a_bad_file_is_refused_with_its_line(tmp_path, content, message):
    path = tmp_path / "submission.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_submission(str(path))


def test_files_from_windows_and_quoted_files_are_read(tmp_path):
    path = tmp_path / "submission.csv"
    path.write_bytes(b'\xef\xbb\xbf"image_id","PredictionString"\r\n"a","14 0.5 0 0 1 1"\r\n\r\n')
    (image,) = read_submission(str(path))
    assert (image.image_id, image.no_finding) == ("a", 0.5)
