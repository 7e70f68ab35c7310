"""Which finding is taken for which."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.evaluation.images import found, tied_images, truth
from tests.evaluation.reference import box_iou
from vbd.errors import InputError
from vbd.evaluation.confusion import BACKGROUND, confusion

BOX, NEAR, AWAY = [0, 0, 10, 10], [0, 0, 10, 11], [50, 50, 60, 60]


def cells(result):
    return {(int(row), int(column)): int(result.matrix[row, column]) for row, column in np.argwhere(result.matrix)}


def test_nothing_at_all():
    result = confusion([], [], score_threshold=0.5)
    assert result.matrix.shape == (15, 15)
    assert result.matrix.dtype == np.int64
    assert cells(result) == {}
    assert (result.rows[-1], result.columns[-1]) == ("background", "missed")


def test_a_box_of_another_class_on_a_finding_is_a_confusion():
    truths = [truth("a", [BOX, AWAY], [3, 5])]
    result = confusion([found("a", [NEAR, [80, 80, 90, 90]], [0.9, 0.8], [4, 5])], truths, score_threshold=0.5)
    assert cells(result) == {(3, 4): 1, (5, BACKGROUND): 1, (BACKGROUND, 5): 1}


def test_each_finding_is_taken_once_by_the_highest_score():
    truths = [truth("a", [BOX], [3])]
    result = confusion([found("a", [BOX, NEAR], [0.6, 0.9], [3, 4])], truths, score_threshold=0.5)
    assert cells(result) == {(3, 4): 1, (BACKGROUND, 3): 1}


def test_of_equal_overlaps_the_own_class_comes_first():
    truths = [truth("a", [BOX, BOX, BOX], [2, 3, 4])]
    assert cells(confusion([found("a", [NEAR], [0.9], [3])], truths, score_threshold=0.5))[3, 3] == 1
    assert cells(confusion([found("a", [NEAR], [0.9], [9])], truths, score_threshold=0.5))[2, 9] == 1


def test_boxes_below_the_threshold_are_not_there():
    truths = [truth("a", [BOX])]
    detections = [found("a", [BOX], [0.5])]
    assert cells(confusion(detections, truths, score_threshold=0.5)) == {(0, 0): 1}
    assert cells(confusion(detections, truths, score_threshold=0.51)) == {(0, BACKGROUND): 1}


def test_overlap_must_exceed_the_threshold():
    # 2 of 5 columns shared: IoU is exactly 0.4
    result = confusion([found("a", [[0, 0, 2, 1]], [0.5])], [truth("a", [[0, 0, 5, 1]])], score_threshold=0)
    assert cells(result) == {(0, BACKGROUND): 1, (BACKGROUND, 0): 1}


def test_images_are_kept_apart_and_no_finding_is_left_out():
    truths = [truth("a", [BOX]), truth("b"), truth("c", [AWAY])]
    detections = [found("c", [BOX], [0.9]), found("b", [BOX], [0.8], no_finding=0.9), found("a", no_finding=0.1)]
    assert cells(confusion(detections, truths, score_threshold=0)) == {(0, BACKGROUND): 2, (BACKGROUND, 0): 2}


def test_a_bad_score_is_told():
    with pytest.raises(InputError, match="not finite"):
        confusion([found("a", [BOX], [np.nan])], [truth("a")], score_threshold=0)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0, 0.5, 1.0]))
def test_counts_are_those_of_the_plain_loop_and_add_up(seed, score_threshold):
    detections, truths = tied_images(seed)
    result = confusion(detections, truths, score_threshold=score_threshold)
    assert (result.matrix == plain(detections, truths, score_threshold)).all()
    labels = np.concatenate([image.labels for image in truths])
    kept = np.concatenate([image.labels[image.scores >= score_threshold] for image in detections])
    assert result.matrix[:14].sum(1).tolist() == np.bincount(labels, minlength=14).tolist()
    assert result.matrix[:, :14].sum(0).tolist() == np.bincount(kept, minlength=14).tolist()
    assert result.matrix[BACKGROUND, BACKGROUND] == 0


def plain(detections, truths, score_threshold):
    matrix = np.zeros((15, 15), int)
    for image in truths:
        free = list(range(len(image.boxes)))
        (own,) = [each for each in detections if each.image_id == image.image_id]
        for k in sorted(range(len(own.boxes)), key=lambda k: -own.scores[k]):
            if own.scores[k] < score_threshold:
                continue
            ious = {t: box_iou(own.boxes[k].astype(float), image.boxes[t].astype(float)) for t in free}
            best = max(free, key=lambda t: (ious[t], image.labels[t] == own.labels[k], -t), default=None)
            is_hit = best is not None and ious[best] > 0.4
            matrix[image.labels[best] if is_hit else 14, own.labels[k]] += 1
            if is_hit:
                free.remove(best)
        for t in free:
            matrix[image.labels[t], 14] += 1
    return matrix
