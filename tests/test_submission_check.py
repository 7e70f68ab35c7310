"""A submission examined row by row."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vbd.records import Detections
from vbd.submission.check import check_sheet, check_submission, read_sheet
from vbd.submission.file import write_submission
from vbd.submission.signs import find_equal_scores, find_resized, find_reversed_whole

HEADER = "image_id,PredictionString\n"


def problems(tmp_path, text, image_ids=("a",), original_hw=None):
    path = tmp_path / "submission.csv"
    path.write_text(text)
    return check_submission(str(path), image_ids=list(image_ids), original_hw=original_hw)


def test_a_good_file_has_no_defects(tmp_path):
    text = HEADER + "a,3 0.5 1 2 30 40 14 0.1 0 0 1 1\nb,14 1 0 0 1 1\n"
    assert problems(tmp_path, text, ("a", "b"), {"a": (40, 30), "b": (9, 9)}) == []


@pytest.mark.parametrize(
    ("row", "kind", "problem"),
    [
        ("a,", "no_prediction", "empty"),
        ("a", "no_prediction", "no comma"),
        ("a,14 1 0 0 1", "not_six", "multiple of six"),
        ("a,14 1 0 0 one 1", "not_a_number", "'one' (value 5) is not a number"),
        ("a,14 nan 0 0 1 1", "not_a_number", "'nan' (value 2) is not a number"),
        ("a,15 1 0 0 10 10 14 1 0 0 1 1", "unknown_class", "prediction 1: the class"),
        ("a,1.5 1 0 0 10 10 14 1 0 0 1 1", "unknown_class", "prediction 1: the class"),
        ("a,14 0 0 0 1 1", "score_range", "score is not in (0, 1]"),
        ("a,14 1.1 0 0 1 1", "score_range", "score is not in (0, 1]"),
        ("a,14 1 0 0 1 1 3 0.5 5 5 101 9", "outside_image", "prediction 2: the box leaves the image of 100 x 50"),
        ("a,14 1 0 0 1 1 3 0.5 -1 5 10 9", "outside_image", "leaves"),
        ("a,14 1 0 0 1 1 3 0.5 10 5 10 9", "corners", "x_min >= x_max"),
        ("a,14 1 0 0 1 1 3 0.5 0 0 1 1 3 0.4 5 5 6 6", "one_pixel", "prediction 2 and 1 more: the box is one pixel"),
        ("a,14 1 0 0 100 50", "whole_image_box", "class 14 is not 0 0 1 1"),
        ("a,14 1 0 0 1 1 14 0.5 0 0 1 1", "whole_image_twice", "more than once"),
    ],
)
def test_a_row_with_one_defect(tmp_path, row, kind, problem):
    # A second, good row predicts class 14.
    defects = problems(tmp_path, f"{HEADER}{row}\nb,14 1 0 0 1 1\n", ("a", "b"), {"a": (50, 100)})
    (defect,) = defects
    assert (defect.kind, defect.line, defect.image_id) == (kind, 2, "a")
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


def test_an_id_with_the_ending_of_a_file_is_the_image(tmp_path):
    (defect,) = problems(tmp_path, HEADER + "a.png,14 1 0 0 1 1\n")
    assert (defect.kind, defect.line, defect.mend) == ("unknown_image", 2, "write a")


def test_without_a_header_the_first_line_is_a_row(tmp_path):
    (defect,) = problems(tmp_path, "a,14 1 0 0 1 1\nb,14 1 0 0 1 1\n", ("a", "b"))
    assert (defect.kind, defect.line) == ("header", 1)


@pytest.mark.parametrize("separator", [";", "\t"])
def test_another_separator_is_a_fault_of_the_header_alone(tmp_path, separator):
    text = (HEADER + "a,14 1 0 0 1 1\n").replace(",", separator)
    (defect,) = problems(tmp_path, text)
    assert (defect.kind, defect.line) == ("header", 1)


def test_each_defect_of_a_row_is_told_and_lines_are_in_order(tmp_path):
    text = HEADER + "b,3 2 1 1 9 9 15 1 1 1 9 9 14 1 0 0 1 1\na,14 1 0 0 1\n\nc,14 1 0 0 2 2\n"
    defects = problems(tmp_path, text, ("a", "b", "c"))
    told = [(defect.kind, defect.line) for defect in defects]
    assert told == [("unknown_class", 2), ("score_range", 2), ("not_six", 3), ("whole_image_box", 5)]


# ------------------------------------------------------------------------------------------------------ no false alarm

PIXELS = st.floats(-50, 700, width=32)


@st.composite
def images(draw):
    """Detections of some images of any size, boxes of any kind; scores differ, as a model's do."""
    sizes, detections, place = {}, [], 0
    for number in range(draw(st.integers(1, 6))):
        boxes = draw(arrays(np.float32, (draw(st.integers(0, 8)), 4), elements=PIXELS))
        scores = (1 / (2 + place + np.arange(len(boxes)))).astype(np.float32)
        place += len(boxes)
        p = draw(st.none() | st.floats(0, 1))
        sizes[f"i{number}"] = (draw(st.integers(20, 600)), draw(st.integers(20, 600)))
        detections.append(Detections(f"i{number}", boxes, scores, np.arange(len(boxes)) % 14, p))
    return sizes, detections


@settings(max_examples=150, deadline=None)
@given(images())
def test_what_is_written_has_no_defects(tmp_path_factory, drawn):
    sizes, detections = drawn
    path = str(tmp_path_factory.mktemp("written") / "submission.csv")
    write_submission(detections, path, image_ids=list(sizes), original_hw=sizes)
    sheet = read_sheet(path, sizes)
    found = check_sheet(sheet, image_ids=list(sizes), original_hw=sizes)
    assert [defect for defect in found if defect.kind != "no_whole_image"] == []
    assert bool(found) == (not sheet.is_whole.any())
    assert find_resized(sheet, sizes, prepared_side=128) is None
    assert find_equal_scores(sheet) == find_reversed_whole(sheet) == []
