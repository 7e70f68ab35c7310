"""Fusing the detections of several models, against the authors' own code."""

import json
from dataclasses import dataclass

import ensemble_boxes
import numpy as np
import pytest
from ensemble_boxes.ensemble_boxes_nms import cpu_soft_nms_float, nms_float_fast
from hypothesis import given, settings
from hypothesis import strategies as st

from vbd.config import checked
from vbd.errors import InputError
from vbd.fusion.detections import FIELD_THRESHOLDS, METHODS, FusionOptions, fuse, fuse_all
from vbd.fusion.wbf import CONFIDENCES
from vbd.records import Detections

SIDE = 1024.0


def found(image_id, boxes=(), scores=(), labels=None, no_finding=None):
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    labels = np.zeros(len(boxes), np.int64) if labels is None else np.asarray(labels, np.int64)
    return Detections(image_id, boxes, np.asarray(scores, np.float32), labels, no_finding)


@dataclass(frozen=True)
class Case:
    """One image: up to five models' boxes, their weights, and how to fuse them."""

    runs: list[Detections]
    weights: list[float]
    iou_threshold: float
    skip_threshold: float


@st.composite
def cases(draw):
    """Models without any box, tied scores, copies of boxes and equal weights among them."""
    rng = np.random.default_rng(draw(st.integers(0, 100_000)))
    counts = draw(st.lists(st.sampled_from([0, 1, 8, 20]), min_size=1, max_size=5))
    tied, copied, equal = draw(st.booleans()), draw(st.booleans()), draw(st.booleans())
    shared = boxes_of(rng, 6)
    runs = []
    for n in counts:
        boxes = np.where(rng.uniform(size=(n, 1)) < 0.5 * copied, shared[rng.integers(0, 6, n)], boxes_of(rng, n))
        scores = rng.choice([0.25, 0.5, 0.75], n) if tied else rng.uniform(0.01, 1, n)
        runs.append(found("a", boxes, scores, rng.integers(0, 3, n)))
    weights = [1.0] * len(runs) if equal else rng.choice([0.5, 1, 1.5, 2], len(runs)).tolist()
    return Case(runs, weights, float(rng.uniform(0.2, 0.7)), draw(st.sampled_from([0.0, 0.05, 0.3])))


def boxes_of(rng, n):
    centre, half = rng.uniform(0.3, 0.7, (n, 2)), rng.uniform(0.05, 0.3, (n, 2))
    return np.clip(np.hstack([centre - half, centre + half]), 0, 1) * SIDE


def random_runs(seed):
    rng = np.random.default_rng(seed)
    runs = [found("a", boxes_of(rng, n), rng.uniform(0.01, 1, n), rng.integers(0, 3, n)) for n in (8, 0, 20, 1)]
    return runs, rng.uniform(0.2, 2, len(runs)).tolist()


def reference_lists(case):
    """What the authors' code takes. It settles ties by chance: a hair's breadth of score tells it our order."""
    rows = [(m, i) for m, run in enumerate(case.runs) for i in range(len(run.scores))]
    rows.sort(key=lambda row: (-case.weights[row[0]] * case.runs[row[0]].scores[row[1]], row[0], *box_at(case, row)))
    scores = [run.scores.astype(np.float64) for run in case.runs]
    for place, (m, i) in enumerate(rows):
        scores[m][i] *= 1 - 1e-10 * place
    return [run.boxes.astype(np.float64) / SIDE for run in case.runs], scores, [run.labels for run in case.runs]


def box_at(case, row):
    return case.runs[row[0]].boxes[row[1]].tolist()


def reference_suppression(case, method, sigma=0.5):
    """Their `nms` and `soft_nms`. The latter chooses by decayed scores but gives back those from before the decay."""
    kept = [scores >= case.skip_threshold for scores in reference_lists(case)[1]]
    boxes, scores, labels = (
        np.concatenate([rows[keep] for rows, keep in zip(column, kept, strict=True)])
        for column in reference_lists(case)
    )
    shares = np.array(case.weights) / sum(case.weights)
    scores = scores * np.concatenate([np.full(keep.sum(), w) for w, keep in zip(shares, kept, strict=True)])
    parts = []
    for label in np.unique(labels):
        own, decayed = boxes[labels == label], scores[labels == label]
        if method == "nms":
            rows = nms_float_fast(own, decayed, thresh=case.iou_threshold)
            parts.append((own[rows], decayed[rows], np.full(len(rows), label)))
            continue
        number = 1 if method == "soft_nms" else 2
        rows = cpu_soft_nms_float(own.copy(), decayed, case.iou_threshold, sigma, 1e-3, number)
        parts.append((own[rows], decayed[decayed > 1e-3], np.full(len(rows), label)))
    return [np.concatenate(column) for column in zip(*parts, strict=True)] if parts else [[]] * 3


def assert_same(fused, boxes, scores, labels):
    """Same boxes in 0..1 and scores to 1e-6, in an order that does not hang on ties between fused scores."""
    assert len(fused.boxes) == len(boxes)
    if not len(boxes):
        return
    ours = np.column_stack([fused.labels, fused.scores, fused.boxes / SIDE])
    theirs = np.column_stack([labels, scores, boxes])
    # Equal to the fourth digit is told apart by what follows: nearest rows are compared, each once.
    distance = np.abs(ours[:, None] - theirs[None]).max(2)
    nearest = distance.argmin(1)
    assert sorted(np.unique(theirs[nearest], axis=0).tolist()) == sorted(np.unique(theirs, axis=0).tolist())
    assert distance.min(1).max() <= 1e-6


@settings(max_examples=80, deadline=None)
@given(cases(), st.sampled_from([c for c in CONFIDENCES if c != "sum"]))
def test_equals_the_authors_weighted_box_fusion(case, confidence):
    options = {"iou_threshold": case.iou_threshold, "skip_threshold": case.skip_threshold}
    fused = fuse(case.runs, case.weights, confidence=confidence, **options)
    expected = ensemble_boxes.weighted_boxes_fusion(
        *reference_lists(case),
        weights=case.weights,
        iou_thr=case.iou_threshold,
        skip_box_thr=case.skip_threshold,
        conf_type=confidence,
    )
    assert_same(fused, *expected)


@settings(max_examples=40, deadline=None)
@given(cases())
def test_summed_confidence_is_theirs_with_overflow_brought_below_one(case):
    fused = fuse(case.runs, case.weights, iou_threshold=case.iou_threshold, confidence="sum")
    boxes, scores, labels = ensemble_boxes.weighted_boxes_fusion(
        *reference_lists(case), weights=case.weights, iou_thr=case.iou_threshold, allows_overflow=True
    )
    assert_same(fused, boxes, 1 - np.exp(-scores), labels)


@settings(max_examples=40, deadline=None)
@given(cases())
def test_equals_their_non_maximum_weighted(case):
    options = {"iou_threshold": case.iou_threshold, "skip_threshold": case.skip_threshold}
    fused = fuse(case.runs, case.weights, method="nmw", **options)
    expected = ensemble_boxes.non_maximum_weighted(
        *reference_lists(case),
        weights=case.weights,
        iou_thr=case.iou_threshold,
        skip_box_thr=case.skip_threshold,
    )
    assert_same(fused, *expected)


@settings(max_examples=80, deadline=None)
@given(cases(), st.sampled_from(["nms", "soft_nms", "soft_nms_gaussian"]))
def test_equals_their_suppression_hard_and_soft(case, method):
    options = {"iou_threshold": case.iou_threshold, "skip_threshold": case.skip_threshold}
    fused = fuse(case.runs, case.weights, method=method, **options)
    assert_same(fused, *reference_suppression(case, method))


def test_their_nms_as_it_is_called():
    runs, weights = random_runs(4)
    case = Case(runs, weights, 0.5, 0.0)
    expected = ensemble_boxes.nms(*reference_lists(case), iou_thr=0.5, weights=weights)
    assert_same(fuse(runs, weights, method="nms"), *expected)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("confidence", CONFIDENCES)
def test_a_model_of_weight_zero_is_absent(method, confidence):
    runs, weights = random_runs(2)
    options = FusionOptions(method=method, confidence=confidence)
    fused = fuse(runs, [*weights[:2], 0, weights[3]], options)
    without = fuse([runs[0], runs[1], runs[3]], [*weights[:2], weights[3]], options)
    assert np.array_equal(fused.boxes, without.boxes)
    np.testing.assert_allclose(fused.scores, without.scores, rtol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_order_of_boxes_does_not_matter_even_on_ties(method):
    rng = np.random.default_rng(0)
    runs = [found("a", boxes_of(rng, 30), rng.choice([0.25, 0.5], 30), rng.integers(0, 2, 30)) for _ in range(3)]
    turned = [found("a", run.boxes[::-1], run.scores[::-1], run.labels[::-1]) for run in runs]
    first, second = (fuse(each, [1, 1, 1], method=method) for each in (runs, turned))
    assert np.array_equal(first.boxes, second.boxes)
    assert np.array_equal(first.scores, second.scores)


def test_a_wider_sigma_decays_less():
    runs, weights = random_runs(3)
    narrow, wide = (fuse(runs, weights, method="soft_nms_gaussian", sigma=sigma) for sigma in (0.1, 2.0))
    assert narrow.scores.sum() < wide.scores.sum()


def test_options_survive_json():
    for options in (FusionOptions(), FusionOptions("soft_nms", iou_threshold=FIELD_THRESHOLDS, min_score=0.01)):
        assert checked.parse(json.dumps(options.to_json()).encode(), FusionOptions, where="here", again="") == options


def test_no_member_found_anything():
    fused = fuse([found("a"), found("a")], [1, 1])
    assert fused.boxes.shape == (0, 4)
    assert fused.no_finding is None


def test_images_are_joined_by_id_and_a_missing_one_counts_as_no_boxes():
    box = [[0, 0, 10, 10]]
    first = [found("a", box, [0.8]), found("b", box, [0.6])]
    second = [found("c"), found("b", box, [0.4])]
    fused = {image.image_id: image for image in fuse_all([first, second], [1, 1])}
    assert list(fused) == ["a", "b", "c"]
    assert fused["a"].scores.tolist() == pytest.approx([0.4])
    assert fused["b"].scores.tolist() == pytest.approx([0.5])
    assert len(fused["c"].boxes) == 0


def test_many_images_at_once_are_fused_as_one_by_one():
    runs = [random_runs(seed)[0] for seed in range(12)]
    members = [
        [found(f"i{i}", run[m].boxes, run[m].scores, run[m].labels) for i, run in enumerate(runs) if (i + m) % 3]
        for m in range(4)
    ]
    weights = [1, 2, 1, 0.5]
    together = fuse_all(members, weights, iou_threshold=FIELD_THRESHOLDS)
    for image in together:
        own = [next((f for f in m if f.image_id == image.image_id), found(image.image_id)) for m in members]
        alone = fuse(own, weights, iou_threshold=FIELD_THRESHOLDS)
        assert np.array_equal(alone.boxes, image.boxes)
        assert np.array_equal(alone.scores, image.scores)


def test_scores_descend_and_stay_in_range():
    for confidence in CONFIDENCES:
        scores = fuse(*random_runs(3), confidence=confidence).scores
        assert (np.diff(scores) <= 0).all()
        assert scores.min() > 0
        assert scores.max() <= 1


def test_probability_of_normal_is_the_weighted_mean_of_those_who_know():
    runs = [found("a", no_finding=0.9), found("a", no_finding=0.3), found("a")]
    assert fuse(runs, [3, 1, 5]).no_finding == pytest.approx(0.75)


def test_arguments_are_not_changed():
    runs, weights = random_runs(1)
    before = [run.boxes.copy() for run in runs]
    fuse(runs, weights)
    assert all(np.array_equal(run.boxes, copy) for run, copy in zip(runs, before, strict=True))


def test_misuse_is_told():
    with pytest.raises(ValueError, match="one image"):
        fuse([found("a"), found("b")], [1, 1])
    with pytest.raises(ValueError, match="1 weights for 2 members"):
        fuse([found("a"), found("a")], [1])
    with pytest.raises(ValueError, match="label 1"):
        fuse([found("a")], [1], iou_threshold={0: 0.5})
    for weights in ([0, 0], [1, -1], [1, np.nan]):
        with pytest.raises(ValueError, match="weights"):
            fuse([found("a"), found("a")], weights, method="nms")
    for wrong in ({"method": "median"}, {"confidence": "min"}, {"iou_threshold": 1.0}, {"sigma": 0.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            fuse([found("a")], [1], **wrong)
    with pytest.raises(InputError, match="twice"):
        fuse_all([[found("a"), found("a")]], [1])
