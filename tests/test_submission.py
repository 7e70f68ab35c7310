"""The submission file, written and read."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vbd import storage
from vbd.errors import InputError, StoreError
from vbd.records import Detections
from vbd.submission.file import read_submission, shortest, write_submission

HEADER = "image_id,PredictionString\n"


def found(image_id, boxes=(), scores=(), labels=None, no_finding=None):
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    labels = np.zeros(len(boxes), np.int64) if labels is None else np.asarray(labels, np.int64)
    return Detections(image_id, boxes, np.asarray(scores, np.float32), labels, no_finding)


def written(tmp_path, detections, image_ids, **options):
    path = tmp_path / "submission.csv"
    write_submission(detections, str(path), image_ids=image_ids, **options)
    return path.read_text().splitlines()


def test_no_images(tmp_path):
    assert written(tmp_path, [], []) == ["image_id,PredictionString"]


def test_an_image_without_detections_is_normal(tmp_path):
    assert written(tmp_path, [found("b")], ["b", "a"])[1:] == ["b,14 1 0 0 1 1", "a,14 1 0 0 1 1"]


def test_probability_of_normal_stands_beside_the_boxes(tmp_path):
    image = found("a", [[1, 2, 30.5, 40]], [0.25], [3], no_finding=0.1)
    assert written(tmp_path, [image], ["a"])[1] == "a,3 0.25 1 2 30.5 40 14 0.1 0 0 1 1"
    assert written(tmp_path, [found("a", no_finding=0.0)], ["a"])[1] == "a,14 1e-6 0 0 1 1"


def test_boxes_without_a_probability_stand_alone(tmp_path):
    assert written(tmp_path, [found("a", [[1, 2, 3, 4]], [1])], ["a"])[1] == "a,0 1 1 2 3 4"


def test_rows_follow_the_given_order(tmp_path):
    lines = written(tmp_path, [found("b"), found("a"), found("c")], ["c", "a", "b"])
    assert [line.split(",")[0] for line in lines[1:]] == ["c", "a", "b"]


def test_boxes_are_cut_at_the_border_and_empty_ones_left_out(tmp_path):
    image = found("a", [[-5, 10, 300, 90], [200, 0, 250, 10], [1, 1, 9, 9]], [0.9, 0.8, 0.0])
    assert written(tmp_path, [image], ["a"], original_hw={"a": (80, 200)})[1] == "a,0 0.9 0 10 200 80"


def test_what_is_no_larger_than_a_pixel_is_left_out(tmp_path):
    """It would be taken for the box of class 14; a thin box stays."""
    image = found("a", [[0, 0, 1, 1], [5, 5, 5.5, 6], [7, 7, 7.5, 9]], [0.9, 0.8, 0.7])
    assert written(tmp_path, [image], ["a"])[1] == "a,0 0.7 7 7 7.5 9"


def test_only_the_best_boxes_are_kept(tmp_path):
    image = found("a", [[0, 0, i, i] for i in (2, 3, 4)], [0.1, 0.9, 0.5])
    assert written(tmp_path, [image], ["a"], max_boxes=2)[1] == "a,0 0.9 0 0 3 3 0 0.5 0 0 4 4"
    many = found("a", [[0, 0, 9, 9]] * 400, np.linspace(0.1, 0.9, 400))
    assert written(tmp_path, [many], ["a"])[1].count(" 0 0 9 9") == 300


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 4096, width=32), max_size=9))
def test_numbers_read_back_exactly(values):
    numbers = np.array(values, np.float32)
    texts = shortest(numbers).to_pylist()
    assert np.array_equal(np.array([float(text) for text in texts], np.float32), numbers)
    assert all(len(text) <= len(str(number)) for text, number in zip(texts, numbers, strict=True))


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
        ([found("a", [[0, 0, 9, 9]], [1.5])], ["a"], "score 1.5"),
        ([found("a", [[0, 0, 9, 9], [0, 0, 9, 9]], [0.5, -0.25])], ["a"], "score -0.25"),
        ([found("a", [[0, 0, 9, 9]], [np.nan])], ["a"], "score nan"),
        ([found("a", no_finding=2.0)], ["a"], r"P\(normal\)"),
    ],
)
def test_what_cannot_be_submitted_leaves_no_file(tmp_path, detections, image_ids, message):
    with pytest.raises(InputError, match=message):
        written(tmp_path, detections, image_ids)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "submission.csv:1"),
        (b"ID,TARGET\na,14 1 0 0 1 1\n", "submission.csv:1"),
        (HEADER.encode() + b"a,14 1 0 0 1 1\nb,3 1 2\n", "submission.csv:3"),
        (HEADER.encode() + b"a,14 1 0 0 1 1\na,14 1 0 0 1 1\n", "submission.csv:3"),
        (HEADER.encode() + b"a,3 1_0 0 0 1 1\n", r"submission.csv:2: image 'a': '1_0' \(value 2\) is not a number"),
        (
            HEADER.encode() + "a,３ 0.5 0 0 1 1\n".encode(),
            r"submission.csv:2: image 'a': '３' \(value 1\) is not a number",
        ),
        (HEADER.encode() + b"a,3 nan 0 0 1 1\n", r"submission.csv:2: image 'a': 'nan' \(value 2\) is not a number"),
        (
            HEADER.encode() + b"a,3 5 0 0 1 1\n",
            r"submission.csv:2: image 'a': the score is not in \(0, 1\] in prediction 1",
        ),
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


# --------------------------------------------------------------------------------------------------------- its publishing


def test_a_place_that_does_not_keep_what_is_written_keeps_the_old_file(tmp_path, monkeypatch):
    written(tmp_path, [found("a", no_finding=0.25)], ["a"])
    read = storage.read_bytes
    monkeypatch.setattr(storage, "read_bytes", lambda location: read(location)[:-3])
    with pytest.raises(StoreError, match=r"submission.csv: does not read back as it was written"):
        written(tmp_path, [found("a", no_finding=0.5)], ["a"])
    (file,) = tmp_path.iterdir()
    assert file.read_text() == HEADER + "a,14 0.25 0 0 1 1\n"


def test_a_number_that_reads_back_otherwise_is_not_published(tmp_path, monkeypatch):
    monkeypatch.setattr("vbd.submission.file.shortest", lambda numbers: shortest(np.round(numbers, 2)))
    with pytest.raises(AssertionError, match="image a does not read back"):
        written(tmp_path, [found("a", no_finding=0.125)], ["a"])
    assert not list(tmp_path.iterdir())


def test_an_object_store_shows_the_whole_file_under_its_name_alone(s3_bucket):
    path = f"{s3_bucket}/submissions/submission.csv"
    for p in (0.25, 0.5):
        write_submission([found("a", no_finding=p)], path, image_ids=["a"])
        assert [image.no_finding for image in read_submission(path)] == [p]
    assert storage.list_names(f"{s3_bucket}/submissions") == ["submission.csv"]
