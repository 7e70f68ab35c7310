"""COCO's numbers: ours against pycocotools, to the last bit."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.evaluation.images import HW, found, random_images, tied_images, truth
from tests.evaluation.reference import mean_known, pycocotools_precision
from vbd.errors import InputError
from vbd.evaluation.coco_metric import MAX_DETECTIONS, coco_scores
from vbd.evaluation.subsets import SIZES
from vbd.labels import CLASS_NAMES

BOX = [0, 0, 10, 10]


def crowded_images(seed):
    """One image with more detections of a class than count."""
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, 30, (400, 2)) * 10.0
    boxes = np.hstack([corner, corner + rng.integers(1, 6, (400, 2)) * 10])
    labels = rng.integers(0, 2, 400)
    detections = [found("a", boxes[100:], rng.uniform(0, 1, 300), labels[100:])]
    return detections, [truth("a", boxes[:100], labels[:100])]


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from([random_images, tied_images, crowded_images]),
    st.sampled_from([HW, (1024, 512), (200, 300)]),
)
def test_scores_are_those_of_pycocotools(seed, images, original_hw):
    detections, truths = images(seed)
    truths = [dataclasses.replace(image, original_hw=original_hw) for image in truths]
    scores = coco_scores(detections, truths)
    precision = pycocotools_precision(detections, truths, sizes=True)
    assert [scores.ap, scores.ap50, scores.ap75] == pytest.approx(
        [mean_known(part) for part in (precision[..., 0], precision[:1, ..., 0], precision[5:6, ..., 0])],
        nan_ok=True,
        rel=1e-14,
    )
    for place, size in enumerate(SIZES):
        expected = mean_known(precision[..., 1 + place])
        assert scores.ap_by_size[size] == pytest.approx(expected, nan_ok=True, rel=1e-14)
    for label, name in enumerate(CLASS_NAMES):
        of_class = [mean_known(part[:, :, label, 0]) for part in (precision, precision[:1], precision[5:6])]
        ours = [scores.per_class[name], scores.per_class_50[name], scores.per_class_75[name]]
        assert ours == pytest.approx(of_class, nan_ok=True, rel=1e-14)


def test_only_the_best_hundred_of_an_image_and_class_count():
    boxes = [[20 * i, 0, 20 * i + 10, 10] for i in range(MAX_DETECTIONS + 1)]
    detections = [found("a", boxes, np.linspace(0.9, 0.1, len(boxes)))]
    last, first = ([truth("a", [boxes[place]])] for place in (-1, -2))
    assert coco_scores(detections, last).ap50 == 0
    assert coco_scores(detections, first).ap50 > 0


def test_each_threshold_counts():
    # IoU 0.8: found at 0.50, 0.55 .. 0.80, that is at seven of ten thresholds.
    scores = coco_scores([found("a", [[0, 0, 10, 8]], [0.5])], [truth("a", [BOX])])
    assert (scores.ap, scores.ap50, scores.ap75) == pytest.approx((0.7, 1, 1))


def test_no_finding_is_no_class():
    scores = coco_scores([found("a", no_finding=0.9)], [truth("a")])
    assert list(scores.per_class) == list(CLASS_NAMES)
    assert math.isnan(scores.ap)
    assert scores.num_images == 1


def test_no_images_no_detections_no_truth():
    assert math.isnan(coco_scores([], []).ap)
    assert coco_scores([], [truth("a", [BOX])]).ap == 0
    assert math.isnan(coco_scores([found("a", [BOX], [0.5])], [truth("a")]).ap50)


def test_sizes_need_the_size_of_every_image():
    truths = [truth("a", [BOX]), truth("b", [BOX], original_hw=(0, 0))]
    scores = coco_scores([found("a", [BOX], [0.5])], truths)
    assert scores.ap50 == pytest.approx(51 / 101)
    assert all(math.isnan(value) for value in scores.ap_by_size.values())


def test_size_is_a_share_of_the_image():
    # 20 px are small in an image of 512 px and large in one of 64.
    box = [0, 0, 20, 20]
    of_size = {hw: coco_scores([], [truth("a", [box], original_hw=hw)]).ap_by_size for hw in (HW, (64, 64))}
    assert (of_size[HW]["small"], of_size[64, 64]["large"]) == (0, 0)
    assert math.isnan(of_size[HW]["large"])


def test_a_detection_that_matches_nothing_is_false_only_among_findings_of_its_size():
    # In an image of 1,024 px 60 px are small, in one of 512 px they would not be.
    truths = [truth("a", [[0, 0, 40, 40]], original_hw=(1024, 1024))]
    detections = [found("a", [[500, 500, 560, 560], [0, 0, 40, 40]], [0.9, 0.8])]
    assert coco_scores(detections, truths).ap_by_size["small"] == pytest.approx(0.5)
    larger = [found("a", [[500, 500, 600, 600], [0, 0, 40, 40]], [0.9, 0.8])]
    assert coco_scores(larger, truths).ap_by_size["small"] == pytest.approx(1)


def test_bad_input_is_told():
    with pytest.raises(InputError, match="not finite"):
        coco_scores([found("a", [BOX], [np.nan])], [truth("a")])
