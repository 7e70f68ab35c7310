"""The competition's metric."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.evaluation.images import found, random_images, renamed, tied_images, truth, with_boxes
from tests.evaluation.reference import mean_known, pycocotools_precision, reference_scores
from vbd.errors import InputError
from vbd.evaluation.average_precision import average_precisions, evaluate
from vbd.evaluation.matching import match
from vbd.labels import CLASS_NAMES, NO_FINDING_NAME

CASES = sorted((Path(__file__).parents[1] / "cases").glob("voc_*.json"))
SEEDS = st.integers(0, 10_000)


def shift_sides(image, pixels):
    """The inclusive-pixel form: a box from 1 to 3 is 3 pixels wide."""
    return with_boxes(image, image.boxes + np.array([0, 0, pixels, pixels], np.float32))


def read_case(path):
    case = json.loads(path.read_text())
    truths = [truth(i, [row[2:] for row in case["gt"] if row[0] == i]) for i in case["images"]]
    rows = {i: [row for row in case["det"] if row[0] == i] for i in case["images"]}
    detections = [found(i, [row[3:] for row in rows[i]], [row[2] for row in rows[i]]) for i in case["images"]]
    return detections, truths, case["expected"]


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
@pytest.mark.parametrize(("form", "pixels"), [("plain_all_point", 0), ("plain_all_point(+1px)", 1)])
def test_published_values(path, form, pixels):
    detections, truths, expected = read_case(path)
    detections, truths = ([shift_sides(image, pixels) for image in images] for images in (detections, truths))
    for threshold, values in expected.items():
        scores = evaluate(detections, truths, iou_threshold=float(threshold))
        assert scores.map_40_findings == pytest.approx(values[form], abs=1e-12)


def test_nothing_at_all():
    scores = evaluate([], [])
    assert math.isnan(scores.map_40)
    assert scores.num_images == 0


def test_no_detections_score_zero():
    scores = evaluate([], [truth("a", [[0, 0, 9, 9]]), truth("b")])
    assert scores.map_40 == 0
    assert scores.num_truths[NO_FINDING_NAME] == 1


def test_detections_without_any_truth_have_no_score():
    assert math.isnan(evaluate([found("a", [[0, 0, 9, 9]], [0.5])], [truth("a")]).map_40_findings)


def test_no_finding_is_ranked_by_its_probability():
    truths = [truth("normal"), truth("ill", [[0, 0, 9, 9]])]
    right = evaluate([found("normal", no_finding=0.9), found("ill", no_finding=0.2)], truths)
    wrong = evaluate([found("normal", no_finding=0.2), found("ill", no_finding=0.9)], truths)
    missing = evaluate([found("normal"), found("ill")], truths)
    assert [s.per_class[NO_FINDING_NAME] for s in (right, wrong, missing)] == [1.0, 0.5, 0.0]


def test_average_is_over_classes_with_ground_truth():
    scores = evaluate([found("a", [[0, 0, 9, 9]], [0.5])], [truth("a", [[0, 0, 9, 9], [20, 20, 40, 40]], [0, 3])])
    assert scores.map_40 == scores.map_40_findings == 0.5
    assert math.isnan(scores.per_class[CLASS_NAMES[1]])


def test_overlap_must_exceed_the_threshold():
    # 2 of 5 columns shared: IoU is exactly 0.4
    exact = evaluate([found("a", [[0, 0, 2, 1]], [0.5])], [truth("a", [[0, 0, 5, 1]])])
    above = evaluate([found("a", [[0, 0, 2.1, 1]], [0.5])], [truth("a", [[0, 0, 5, 1]])])
    assert (exact.map_40, above.map_40) == (0, 1)
    assert exact.map_coco_101 == 1


def test_second_detection_of_a_finding_is_false():
    twice = found("a", [[0, 0, 10, 10], [0, 0, 10, 9]], [0.9, 0.8])
    matches = match([twice], [truth("a", [[0, 0, 10, 10]])])
    assert matches.is_true_positive.tolist() == [True, False]


def test_voc_does_not_fall_back_to_the_second_best_truth_and_coco_does():
    truths = [truth("a", [[0, 0, 10, 10], [0, 0, 10, 14]])]
    both_best_first = [found("a", [[0, 0, 10, 10], [0, 0, 10, 11]], [0.9, 0.8])]
    scores = evaluate(both_best_first, truths)
    assert scores.map_40 == 0.5
    assert scores.map_coco_101 == pytest.approx(1)


def test_equal_scores_count_in_the_given_order():
    good, bad = [0, 0, 10, 10], [50, 50, 60, 60]
    truths = [truth("a", [good])]
    assert evaluate([found("a", [good, bad], [0.5, 0.5])], truths).map_40 == 1
    assert evaluate([found("a", [bad, good], [0.5, 0.5])], truths).map_40 == 0.5


@pytest.mark.parametrize(
    ("detections", "truths", "message"),
    [
        ([found("b")], [truth("a")], "'b'"),
        ([found("a"), found("a")], [truth("a")], "twice"),
        ([found("a")], [truth("a"), truth("a")], "twice"),
        ([found("a", [[0, 0, 1, 1]], [np.nan])], [truth("a")], "not finite"),
        ([found("a", [[0, 0, 1, np.inf]], [0.5])], [truth("a")], "detections of image 'a': .* not finite"),
        ([found("a", no_finding=np.nan)], [truth("a")], "not finite"),
        ([], [truth("b"), truth("a", [[0, np.nan, 1, 1]])], "ground truth of image 'a': .* not finite"),
        ([found("a", [[0, 0, 1, 1]], [0.5], [17])], [truth("a")], "not in 0..13"),
        ([found("a", [[0, 0, 1, 1]], [0.5], [-1])], [truth("a")], "not in 0..13"),
        # "No finding" is no box: it is said by `no_finding`.
        ([found("a", [[0, 0, 1, 1]], [0.5], [14])], [truth("a")], "not in 0..13"),
        ([], [truth("a", [[0, 0, 1, 1]], [14])], "ground truth of image 'a': a label is not in 0..13"),
    ],
)
def test_bad_input_is_told(detections, truths, message):
    with pytest.raises(InputError, match=message) as error:
        evaluate(detections, truths)
    assert "\n" not in str(error.value)


def test_boxes_without_area_match_nothing():
    flat, point, inside_out = [5, 5, 9, 5], [5, 5, 5, 5], [9, 9, 0, 0]
    truths = [truth("a", [flat, point, [0, 0, 9, 9]])]
    scores = evaluate([found("a", [flat, point, inside_out, [0, 0, 9, 9]], [0.9, 0.8, 0.7, 0.6])], truths)
    # One of three is found, behind three false boxes.
    assert scores.per_class[CLASS_NAMES[0]] == pytest.approx(1 / 3 * 1 / 4)


@pytest.mark.parametrize("size", [1e-18, 1e18], ids=["tiny", "huge"])
def test_boxes_of_any_size_are_matched(size):
    box = [[0, 0, size, size]]
    assert evaluate([found("a", box, [0.5])], [truth("a", box)]).map_40 == 1


def assert_same(first, second):
    assert first.per_class == pytest.approx(second.per_class, nan_ok=True, abs=1e-12)
    assert first.map_coco_101 == pytest.approx(second.map_coco_101, nan_ok=True, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.sampled_from([0.0, 0.25, 0.4, 0.5, 1.0]))
def test_scores_are_those_of_the_plain_loop_whatever_ties_there_are(seed, threshold):
    detections, truths = tied_images(seed)
    values = list(evaluate(detections, truths, iou_threshold=threshold).per_class.values())
    expected = reference_scores(detections, truths, threshold)
    assert values == pytest.approx(expected, nan_ok=True, abs=1e-12)


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.booleans())
def test_coco_form_is_that_of_pycocotools(seed, tied):
    detections, truths = tied_images(seed) if tied else random_images(seed, num_images=8)
    expected = mean_known(pycocotools_precision(detections, truths, thresholds=[0.4], max_detections=10**6))
    assert evaluate(detections, truths).map_coco_101 == pytest.approx(expected, nan_ok=True, abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(SEEDS)
def test_order_of_images_does_not_matter(seed):
    detections, truths = random_images(seed)
    rng = np.random.default_rng(seed)
    shuffled = [detections[i] for i in rng.permutation(len(detections))]
    assert_same(evaluate(shuffled, [truths[i] for i in rng.permutation(len(truths))]), evaluate(detections, truths))


@settings(max_examples=25, deadline=None)
@given(SEEDS)
def test_classes_may_change_places(seed):
    detections, truths = tied_images(seed)
    place = np.random.default_rng(seed).permutation(len(CLASS_NAMES))
    moved = [
        [type(image)(**(vars(image) | {"labels": place[image.labels]})) for image in images]
        for images in (detections, truths)
    ]
    before, after = evaluate(detections, truths), evaluate(*moved)
    assert after.map_40 == pytest.approx(before.map_40, nan_ok=True)
    for label, name in enumerate(CLASS_NAMES):
        assert after.per_class[CLASS_NAMES[place[label]]] == pytest.approx(before.per_class[name], nan_ok=True)


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.integers(1, 30))
def test_false_boxes_below_all_others_change_nothing(seed, count):
    detections, truths = random_images(seed)
    before = evaluate(detections, truths)
    first = detections[0]
    extra = found(
        first.image_id,
        np.vstack([first.boxes, np.tile([900, 900, 950, 950], (count, 1))]),
        np.append(first.scores, np.zeros(count)),
        np.append(first.labels, np.arange(count) % 14),
        first.no_finding,
    )
    after = evaluate([extra, *detections[1:]], truths)
    assert str(after.per_class) == str(before.per_class)  # NaN and all, to the last bit
    assert after.num_detections[CLASS_NAMES[0]] == before.num_detections[CLASS_NAMES[0]] + math.ceil(count / 14)


@settings(max_examples=25, deadline=None)
@given(SEEDS)
def test_a_duplicate_below_its_original_never_helps(seed):
    detections, truths = random_images(seed)
    doubled = [
        found(
            each.image_id,
            np.vstack([each.boxes, each.boxes]),
            np.append(each.scores, each.scores / 1000),
            np.append(each.labels, each.labels),
            each.no_finding,
        )
        for each in detections
    ]
    before, after = match(detections, truths), match(doubled, truths)
    # By VOC's rule a box belongs to one finding, which its original has taken or found taken.
    assert after.is_true_positive.sum() == before.is_true_positive.sum()
    assert_same_ap(average_precisions(after), average_precisions(before))


def assert_same_ap(first, second):
    assert first.tolist() == pytest.approx(second.tolist(), nan_ok=True)


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.floats(0.01, 1000))
def test_scaling_coordinates_changes_nothing(seed, factor):
    detections, truths = random_images(seed)
    scaled = [
        [with_boxes(image, image.boxes.astype(float) * factor) for image in images] for images in (detections, truths)
    ]
    assert_same(evaluate(*scaled), evaluate(detections, truths))


@settings(max_examples=25, deadline=None)
@given(SEEDS)
def test_weights_stand_for_copies_of_images(seed):
    detections, truths = random_images(seed)
    times = np.random.default_rng(seed).integers(0, 3, len(truths))
    weighted = average_precisions(match(detections, truths), times[None])[0]
    copies = [(i, k) for i, n in enumerate(times) for k in range(n)]
    copied = [[renamed(images[i], f"{i}-{k}") for i, k in copies] for images in (detections, truths)]
    assert_same_ap(weighted, np.array(list(evaluate(*copied).per_class.values())))
