"""The competition's metric."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vbd.errors import InputError
from vbd.evaluation.average_precision import average_precisions, evaluate, match
from vbd.labels import CLASS_NAMES, NO_FINDING_NAME
from vbd.records import Detections, Truth

CASES = sorted((Path(__file__).parents[1] / "cases").glob("voc_*.json"))
SEEDS = st.integers(0, 10_000)


def found(image_id, boxes=(), scores=(), labels=None, no_finding=None):
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    labels = np.zeros(len(boxes), np.int64) if labels is None else np.asarray(labels, np.int64)
    return Detections(image_id, boxes, np.asarray(scores, np.float32), labels, no_finding)


def truth(image_id, boxes=(), labels=None):
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    labels = np.zeros(len(boxes), np.int64) if labels is None else np.asarray(labels, np.int64)
    return Truth(image_id, boxes, labels, np.ones(len(boxes), np.int64))


def random_images(seed, num_images=12):
    """Truth and jittered, noisy detections with distinct scores; some images normal, some without detections."""
    rng = np.random.default_rng(seed)
    detections, truths = [], []
    for i in range(num_images):
        n = int(rng.integers(0, 5))
        corner, side = rng.uniform(0, 300, (n, 2)), rng.uniform(30, 150, (n, 2))
        boxes, labels = np.hstack([corner, corner + side]), rng.integers(0, 4, n)
        truths.append(truth(f"i{i}", boxes, labels))
        shown = np.repeat(np.arange(n), 2)
        moved = boxes[shown] + rng.normal(0, 15, (len(shown), 4))
        moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
        detections.append(found(f"i{i}", moved, rng.uniform(0.01, 1, len(shown)), labels[shown], rng.uniform()))
    return detections, truths


def shift_sides(image, pixels):
    """The inclusive-pixel form: a box from 1 to 3 is 3 pixels wide."""
    return type(image)(**(vars(image) | {"boxes": image.boxes + np.array([0, 0, pixels, pixels], np.float32)}))


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
        ([found("a", [[0, 0, 1, 1]], [0.5], [17])], [truth("a")], "not in 0..13"),
    ],
)
def test_bad_input_is_told(detections, truths, message):
    with pytest.raises(InputError, match=message):
        evaluate(detections, truths)


@settings(max_examples=25, deadline=None)
@given(SEEDS)
def test_order_of_images_does_not_matter(seed):
    detections, truths = random_images(seed)
    rng = np.random.default_rng(seed)
    shuffled = [detections[i] for i in rng.permutation(len(detections))]
    other = evaluate(shuffled, [truths[i] for i in rng.permutation(len(truths))])
    assert other.per_class == pytest.approx(evaluate(detections, truths).per_class, nan_ok=True)


@settings(max_examples=25, deadline=None)
@given(SEEDS)
def test_a_box_of_zero_score_changes_nothing_when_it_hits_nothing(seed):
    detections, truths = random_images(seed)
    before = evaluate(detections, truths)
    first = detections[0]
    extra = found(
        first.image_id,
        np.vstack([first.boxes, [[900, 900, 950, 950]]]),
        np.append(first.scores, 0),
        np.append(first.labels, 1),
        first.no_finding,
    )
    assert evaluate([extra, *detections[1:]], truths).per_class == pytest.approx(before.per_class, nan_ok=True)


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.sampled_from([0.25, 2.0, 8.0]))
def test_scaling_coordinates_changes_nothing(seed, factor):
    detections, truths = random_images(seed)
    scaled = [
        [type(image)(**(vars(image) | {"boxes": image.boxes * np.float32(factor)})) for image in images]
        for images in (detections, truths)
    ]
    assert evaluate(*scaled).per_class == pytest.approx(evaluate(detections, truths).per_class, nan_ok=True)


@settings(max_examples=25, deadline=None)
@given(SEEDS)
def test_weights_stand_for_copies_of_images(seed):
    detections, truths = random_images(seed)
    times = np.random.default_rng(seed).integers(0, 3, len(truths))
    weighted = average_precisions(match(detections, truths), times[None])[0]
    copies = [(i, k) for i, n in enumerate(times) for k in range(n)]
    renamed = [
        [type(image)(**(vars(image) | {"image_id": f"{i}-{k}"})) for i, k in copies for image in [images[i]]]
        for images in (detections, truths)
    ]
    expected = list(evaluate(*renamed).per_class.values())
    assert weighted.tolist() == pytest.approx(expected, nan_ok=True)


@settings(max_examples=10, deadline=None)
@given(SEEDS)
def test_coco_form_is_that_of_pycocotools(seed):
    detections, truths = random_images(seed, num_images=8)
    assert evaluate(detections, truths).map_coco_101 == pytest.approx(coco_map(detections, truths), nan_ok=True)


def coco_map(detections, truths):
    from contextlib import redirect_stdout
    from io import StringIO

    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    from vbd.boxes import xyxy_to_xywh

    def rows(images):
        for image_id, image in enumerate(images):
            scores = getattr(image, "scores", np.ones(len(image.boxes)))
            for box, label, score in zip(image.boxes.astype(float), image.labels, scores, strict=True):
                x, y, w, h = xyxy_to_xywh(box[None])[0]
                row = {"image_id": image_id, "category_id": int(label), "bbox": [x, y, w, h], "score": float(score)}
                yield row | {"area": w * h, "iscrowd": 0}

    with redirect_stdout(StringIO()):
        truth_coco, found_coco = COCO(), COCO()
        for coco, images in ((truth_coco, truths), (found_coco, detections)):
            coco.dataset = {
                "images": [{"id": i} for i in range(len(images))],
                "categories": [{"id": label} for label in range(14)],
                "annotations": [row | {"id": i + 1} for i, row in enumerate(rows(images))],
            }
            coco.createIndex()
        scorer = COCOeval(truth_coco, found_coco, "bbox")
        scorer.params.iouThrs, scorer.params.maxDets = np.array([0.4]), [10**6]
        scorer.params.areaRng, scorer.params.areaRngLbl = [[0, 1e10]], ["all"]
        scorer.evaluate()
        scorer.accumulate()
    known = scorer.eval["precision"][scorer.eval["precision"] > -1]
    return known.mean() if len(known) else np.nan
