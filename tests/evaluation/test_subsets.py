"""Scores by agreement of the readers and by size."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.evaluation.images import found, random_images, tied_images, truth
from tests.evaluation.reference import mean_known, pycocotools_precision, reference_scores
from vbd.errors import InputError
from vbd.evaluation.average_precision import average_precisions, evaluate
from vbd.evaluation.subsets import SIZES, by_agreement, by_size, match_by_agreement
from vbd.labels import CLASS_NAMES, NO_FINDING_NAME

FIRST = CLASS_NAMES[0]
SHARED, ALONE, NOTHING = [0, 0, 10, 10], [50, 50, 60, 60], [200, 200, 210, 210]
SEEDS = st.integers(0, 10_000)
BOUNDS = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}


def test_a_finding_of_too_few_readers_need_not_be_found():
    truths = [truth("a", [SHARED, ALONE], readers=[3, 1])]
    scores = by_agreement([found("a", [SHARED], [0.9])], truths)
    assert [scores[level].per_class[FIRST] for level in (1, 2, 3)] == [0.5, 1, 1]
    assert [scores[level].num_truths[FIRST] for level in (1, 2, 3)] == [2, 1, 1]


def test_boxes_on_a_finding_of_too_few_readers_are_not_false_and_others_are():
    truths = [truth("a", [SHARED, ALONE], readers=[3, 1])]
    on_ignored = found("a", [ALONE, ALONE, SHARED], [0.9, 0.8, 0.7])
    elsewhere = found("a", [NOTHING, ALONE, SHARED], [0.9, 0.8, 0.7])
    assert by_agreement([on_ignored], truths)[2].per_class[FIRST] == 1
    assert by_agreement([on_ignored], truths)[2].num_detections[FIRST] == 1
    assert by_agreement([elsewhere], truths)[2].per_class[FIRST] == 0.5


def test_agreement_leaves_no_finding_as_it_is():
    truths = [truth("ill", [ALONE], readers=[1]), truth("normal")]
    detections = [found("ill", no_finding=0.9), found("normal", no_finding=0.8)]
    scores = by_agreement(detections, truths)
    # "No finding" of the image with one reader's box is false at every level.
    assert [scores[level].per_class[NO_FINDING_NAME] for level in (1, 2, 3)] == [0.5] * 3
    assert [scores[level].num_truths[NO_FINDING_NAME] for level in (1, 2, 3)] == [1] * 3


@settings(max_examples=25, deadline=None)
@given(SEEDS)
def test_level_one_is_the_metric_itself(seed):
    detections, truths = tied_images(seed)
    assert str(by_agreement(detections, truths)[1]) == str(evaluate(detections, truths))


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.sampled_from([2, 3]))
def test_agreement_is_that_of_the_plain_loop(seed, level):
    detections, truths = tied_images(seed)
    ignored = {(t.image_id, k) for t in truths for k in np.flatnonzero(t.readers < level)}
    values = list(by_agreement(detections, truths, levels=[level])[level].per_class.values())
    assert values == pytest.approx(reference_scores(detections, truths, ignored=ignored), nan_ok=True, abs=1e-12)
    matches = match_by_agreement(detections, truths, level=level)
    assert average_precisions(matches).tolist() == pytest.approx(values, nan_ok=True)


def test_a_truth_without_readers_is_told():
    truths = [truth("a", [SHARED], readers=[])]
    with pytest.raises(InputError, match="image 'a': 0 numbers of readers for 1 boxes"):
        by_agreement([], truths)


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.booleans())
def test_sizes_are_those_of_the_plain_loop(seed, tied):
    detections, truths = tied_images(seed) if tied else random_images(seed)
    scores = by_size(detections, truths)
    for size, (low, high) in BOUNDS.items():
        outside_truths, outside_found = (
            {
                (image.image_id, k)
                for image in images
                for k, (x0, y0, x1, y1) in enumerate(image.boxes.astype(float))
                if not low <= (x1 - x0) * (y1 - y0) <= high
            }
            for images in (truths, detections)
        )
        expected = reference_scores(detections, truths, ignored=outside_truths, outside=outside_found)
        assert list(scores[size].per_class.values()) == pytest.approx(expected, nan_ok=True, abs=1e-12)


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.booleans())
def test_sizes_by_cocos_matching_are_those_of_pycocotools(seed, tied):
    detections, truths = tied_images(seed) if tied else random_images(seed)
    scores = by_size(detections, truths)
    precision = pycocotools_precision(detections, truths, thresholds=[0.4], sizes=True, max_detections=10**6)
    for place, size in enumerate(SIZES):
        expected = mean_known(precision[..., 1 + place])
        assert scores[size].map_coco_101 == pytest.approx(expected, nan_ok=True, abs=1e-12)


def test_a_box_on_the_bound_belongs_to_both_sizes():
    scores = by_size([], [truth("a", [[0, 0, 32, 32], [0, 0, 96, 96], [0, 0, 97, 96]])])
    assert [scores[size].num_truths[FIRST] for size in SIZES] == [1, 2, 2]


def test_size_is_a_share_of_the_image():
    box = [[0, 0, 64, 64]]
    scores = by_size([], [truth("a", box, original_hw=(1024, 2048)), truth("b", box, original_hw=(256, 256))])
    assert [scores[size].num_truths[FIRST] for size in SIZES] == [1, 0, 1]


def test_sizes_leave_no_finding_as_it_is():
    scores = by_size([found("a", no_finding=0.5)], [truth("a")])
    assert [scores[size].per_class[NO_FINDING_NAME] for size in SIZES] == [1, 1, 1]


def test_an_image_of_unknown_size_is_told():
    with pytest.raises(InputError, match=r"image 'b': original_hw is \(0, 0\)"):
        by_size([], [truth("a"), truth("b", original_hw=(0, 0))])


def test_nothing_at_all():
    assert all(np.isnan(scores.map_40) for scores in by_agreement([], []).values())
    assert all(np.isnan(scores.map_40) for scores in by_size([], []).values())
